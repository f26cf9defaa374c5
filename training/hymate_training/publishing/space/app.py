"""The page: a stay on the left, the model's answer on the right, and below what the model's card says."""

import argparse
import json
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from .answers import answer_html, follow
from .checkpoint import Shown, load
from .stays import COLUMNS, COURSES, Stay, checked, read_stays, simulate, typical_value

SETTINGS = Path(__file__).parent.with_name("space.json")  # beside the folder of this file in a Space
UNKNOWN = "unknown"
SECTIONS = ("Model facts", "Intended use", "Evaluation", "What this card does not know")
KEPT_SECONDS = 600  # of what is uploaded
WARNING = "**Not a medical device.** For research on retrospective data only."
STYLE = """
/* in sight wherever one has scrolled to */
#warning { position: fixed; bottom: 0; left: 0; right: 0; z-index: 50; padding: 0.4rem 1rem; border-radius: 0;
           background: #fff3dc; border-top: 1px solid #e0a030; text-align: center; }
#warning * { color: #4a3000; margin: 0; }
.gradio-container { padding-bottom: 3rem; }
#problem { padding: 0.5rem 0.9rem; border-radius: 6px; background: #fde8e6; border: 1px solid #c8372d; }
#problem * { color: #6b130c; margin: 0; overflow-wrap: anywhere; }
#answer img { width: 100%; max-width: 580px; background: white; border-radius: 6px; }
#answer .latest { font-size: 1.25rem; margin: 0 0 0.5rem; }
#answer h3 { font-size: 1rem; font-weight: 600; margin: 1rem 0 0.25rem; }
.prose table { display: block; overflow-x: auto; width: fit-content; max-width: 100%; margin: 0.5rem 0 !important;
               border-collapse: collapse; }
.prose table, .prose thead, .prose tbody, .prose tr { border: none !important; border-radius: 0 !important; }
.prose th, .prose td { padding: 0.3rem 0.5rem !important; text-align: left; border: none !important;
                       border-bottom: 1px solid #8884 !important; overflow-wrap: normal; word-break: normal; }
#answer th:last-child, #answer td:last-child { text-align: right; }
.plot { flex: 1 1 320px !important; max-width: 560px; }
@media (max-width: 700px) { #answer-column { order: -1; } }  /* what it is all about comes first */
"""
# the system's fonts: nothing is loaded from elsewhere
THEME = gr.themes.Default(
    primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)


class Page:
    """The page of a checkpoint: what its controls do."""

    def __init__(self, shown: Shown):
        self.shown = shown
        self.columns: list[dict[str, Any]] = shown.extractor.static_columns

    def draw(self, course: str, label: str, seed: int) -> list:
        """A new simulated stay: the next seed, no file, the table, the static columns."""
        stay = simulate(self.shown, label, course, seed)
        return [seed + 1, gr.update(value=None), gr.update(visible=False), *self._filled(stay)]

    def ask(self, table: pd.DataFrame, label: str, *static: Any) -> list:
        """The answer, or what is wrong with the stay."""
        known = {column["name"]: _given(value) for column, value in zip(self.columns, static, strict=True)}
        try:
            return [answer_html(follow(self.shown, checked(table, known), label)), _problem("")]
        except ValueError as error:
            return ["", _problem(str(error))]

    def upload(self, path: str, label: str) -> list:
        """The stays of a file, a choice among them, the table and static columns of the first, and the answer; or what
        is wrong with the file."""
        try:
            stays = read_stays(path, self.shown)
        except ValueError as error:
            return [{}, gr.update(visible=False), *self._kept(), "", _problem(str(error))]
        finally:
            Path(path).unlink(missing_ok=True)
        names = list(stays)
        choice = gr.update(choices=names, value=names[0], visible=len(names) > 1)
        filled = self._filled(stays[names[0]])
        return [stays, choice, *filled, *self.ask(filled[0], label, *filled[1:])]

    def choose(self, stays: dict[str, Stay], name: str) -> list:
        """The table and static columns of another stay of the file."""
        return self._filled(stays[name]) if name in stays else self._kept()

    def add(self, table: pd.DataFrame, time: float | None, variable: str | None, value: float | None) -> pd.DataFrame:
        """The table with one measurement more."""
        row = pd.DataFrame([[time, variable, value]], columns=COLUMNS)
        return pd.concat([table, row], ignore_index=True)

    def typical(self, variable: str | None) -> float | None:
        """A typical value of a variable in the model's training data."""
        return None if variable is None else typical_value(self.shown, variable)

    def _filled(self, stay: Stay) -> list:
        static = (stay.static.get(column["name"]) for column in self.columns)
        shown = (
            (UNKNOWN if value is None else str(value)) if "categories" in column else value
            for column, value in zip(self.columns, static, strict=True)
        )
        return [stay.events[COLUMNS], *shown]

    def _kept(self) -> list:
        return [gr.skip() for _ in range(1 + len(self.columns))]

    # ------------------------------------------------------------------------------------------------ what one sees

    def build(self) -> gr.Blocks:
        """The page, to be launched."""
        title = f"Try {self.shown.name}"
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
            gr.Markdown(WARNING, elem_id="warning")
            gr.Markdown(f"# {title}\n\n{self._purpose()}")
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    stay = self._stay()
                    problem = gr.Markdown(visible=False, elem_id="problem")
                with gr.Column(scale=6, min_width=320, elem_id="answer-column"):
                    answer = gr.HTML(elem_id="answer", label="answer")
            self._card()
            self._connect(page, stay, answer, problem)
        return page

    def _purpose(self) -> str:
        labels, size = ", ".join(f"`{label}`" for label in self.shown.labels), len(self.shown.extractor.variables)
        return (
            f"A [HyMaTE](https://arxiv.org/abs/2509.24118) model of {size:,} variables, which answers {labels}. "
            "Change the stay, and see how the answer changes. Nobody should be treated, or not treated, because of "
            "what it says."
        )

    def _stay(self) -> dict[str, Any]:
        """The controls of a stay, by name."""
        found: dict[str, Any] = {"seed": gr.State(0), "stays": gr.State({})}
        found["label"] = gr.Dropdown(
            self.shown.labels, value=self.shown.default_label, label="Answer", visible=len(self.shown.labels) > 2
        )
        with gr.Tab("A simulated stay"):
            found["course"] = gr.Radio(
                COURSES, value="rising", label="Values drift so that the answer is", elem_id="course"
            )
            found["draw"] = gr.Button("Draw a new stay", size="sm", elem_id="draw")
        with gr.Tab("A CSV file"):
            optional = ", ".join(f"`{name}`" for name in ("record_id", *(column["name"] for column in self.columns)))
            gr.Markdown(
                f"Columns `time` (hours since the stay's start), `variable` and `value`; maybe {optional}. "
                "**No data of real patients:** the file goes to the machine that runs this page."
            )
            found["file"] = gr.File(file_types=[".csv"], label="CSV file", elem_id="file", height=140)
            found["chosen"] = gr.Dropdown([], label="Stay", visible=False, elem_id="chosen")
        with gr.Row():
            found["static"] = [self._static_input(column) for column in self.columns]
        found["table"] = gr.Dataframe(
            headers=COLUMNS,
            datatype=["number", "str", "number"],
            column_count=(3, "fixed"),
            interactive=True,
            max_height=300,
            label="Measurements: double-click to change one",
            elem_id="measurements",
        )
        first = next(iter(self.shown.leading), None)
        with gr.Row():
            found["time"] = gr.Number(label="hour", value=24, min_width=70, elem_id="new-time")
            found["variable"] = gr.Dropdown(
                self.shown.extractor.variables, value=first, label="variable", min_width=130, elem_id="new-variable"
            )
            found["value"] = gr.Number(label="value", value=self.typical(first), min_width=70, elem_id="new-value")
        found["add"] = gr.Button("Add this measurement", size="sm", elem_id="add")
        found["ask"] = gr.Button("Ask the model", variant="primary", elem_id="ask")
        return found

    def _static_input(self, column: dict[str, Any]) -> Any:
        name = column["name"]
        if "categories" in column:
            return gr.Dropdown([UNKNOWN, *column["categories"]], value=UNKNOWN, label=name, min_width=170)
        return gr.Number(label=name, min_width=170, elem_id=f"static-{name}")

    def _card(self) -> None:
        gr.Markdown("## What its card says")
        for title in SECTIONS:
            if title in self.shown.card:
                with gr.Accordion(title, open=title in SECTIONS[:2]):
                    gr.Markdown(self.shown.card[title])
                    with gr.Row():
                        for path, caption in self.shown.plots if title == "Evaluation" else ():
                            gr.Image(path, label=caption, interactive=False, buttons=[], elem_classes="plot")
        if not self.shown.card:
            gr.Markdown("It has none.")

    def _connect(self, page: gr.Blocks, stay: dict[str, Any], answer: gr.HTML, problem: gr.Markdown) -> None:
        filled = [stay["table"], *stay["static"]]
        asking = {"fn": self.ask, "inputs": [stay["table"], stay["label"], *stay["static"]]}
        asking |= {"outputs": [answer, problem], "show_progress": "minimal"}
        drawing = {"fn": self.draw, "inputs": [stay["course"], stay["label"], stay["seed"]]}
        drawing |= {"outputs": [stay["seed"], stay["file"], stay["chosen"], *filled]}
        for event in (page.load, stay["draw"].click, stay["course"].input):
            event(**drawing).then(**asking)
        stay["file"].upload(
            self.upload, [stay["file"], stay["label"]], [stay["stays"], stay["chosen"], *filled, answer, problem]
        )
        stay["chosen"].input(self.choose, [stay["stays"], stay["chosen"]], filled).then(**asking)
        stay["add"].click(
            self.add, [stay["table"], stay["time"], stay["variable"], stay["value"]], stay["table"]
        ).then(**asking)
        stay["variable"].input(self.typical, stay["variable"], stay["value"])
        stay["ask"].click(**asking)
        for changed in (stay["table"], stay["label"], *stay["static"]):
            changed.input(**asking, trigger_mode="always_last")


def _given(value: Any) -> Any:
    return None if value in (UNKNOWN, "") else value


def _problem(text: str) -> Any:
    return gr.update(value=text, visible=bool(text))


def main(arguments: list[str] | None = None) -> None:
    """Serves the page of the checkpoint that the arguments or `space.json` name, until it is stopped."""
    settings = json.loads(SETTINGS.read_text(encoding="utf-8")) if SETTINGS.is_file() else {}
    parser = argparse.ArgumentParser(description="A page on which to try a checkpoint.")
    parser.add_argument(
        "checkpoint",
        nargs="?" if settings else None,
        default=settings.get("checkpoint"),
        help="Folder of a fine-tuned model, or its name on the Hub.",
    )
    parser.add_argument("--host", help="Address to listen at (default: this machine alone).")
    parser.add_argument("--port", type=int, help="Port to listen at (default: the first free one from 7860 on).")
    args = parser.parse_args(arguments)
    revision = settings.get("revision") if args.checkpoint == settings.get("checkpoint") else None
    page = Page(load(args.checkpoint, revision)).build()
    page.launch(
        server_name=args.host,
        server_port=args.port,
        theme=THEME,
        css=STYLE,
        footer_links=[],
        ssr_mode=False,
        max_file_size="5mb",
        share=False,
    )
