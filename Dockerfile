# `hymate serve` for the checkpoint mounted at /checkpoint; docs/how-to/serve.md shows how to run it.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/hymate
COPY . /source
WORKDIR /source
RUN PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    /opt/hymate/bin/pip install --no-cache-dir --constraint constraints.txt ".[train,serve]"

FROM python:3.12-slim
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent hymate && install --directory --owner hymate --mode 0700 /state
COPY --from=build /opt/hymate /opt/hymate
ENV PATH=/opt/hymate/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_HOME=/tmp/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001
VOLUME /state
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["hymate", "serve", "--checkpoint", "/checkpoint", "--host", "0.0.0.0", "--state", "/state/streams.safetensors"]
