"""What a model says of a stay while its events arrive, and which of them moved it."""

import base64
import html
import io
import textwrap
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .checkpoint import Shown
from .plots import LEAST_SHOWN, number_events
from .stays import Stay

MOST_TIMES = 500  # at which a stay is asked
STEPS = 8  # whose events are tried one by one: those of the largest changes
MOVERS = 6  # shown
LETTERS = 9
LONGEST_LABEL = 30
BLUE, GREY = "#0072B2", "#8A929A"


@dataclass(frozen=True)
class Course:
    """A model's answers over a stay.

    Attributes:
        label: the output that is followed.
        is_number: whether it is a number, and no probability.
        times: hours since the stay's start, ascending.
        answers: at each of them, from the events until then.
        trained: whether the model was trained to answer then.
        latest: every output at the last time.
        movers: events at the times of the largest changes: `time`, `variable`, `value`, and `change`, the answer at
            that time minus that without the event; largest first.
    """

    label: str
    is_number: bool
    times: np.ndarray
    answers: np.ndarray
    trained: np.ndarray
    latest: dict[str, float]
    movers: pd.DataFrame

    def text(self, answer: float) -> str:
        """An answer in words."""
        return f"{answer:.3g}" if self.is_number else f"{answer:.1%}"

    def change_text(self, change: float) -> str:
        """A change of the answer, signed; of a probability in percentage points."""
        if self.is_number:
            return f"{change:+.3g}"
        points = 100 * change
        return f"{points:+.1f}" if abs(points) >= 1 else f"{points:+.2g}"


def follow(shown: Shown, stay: Stay, label: str) -> Course:
    """Asks a model at the times of a stay's events.

    Raises:
        ValueError: for a variable, a category or a time that the model does not take, saying which.
    """
    recorded = stay.events["time"].to_numpy(np.float32)
    times = np.unique(recorded)
    if len(times) > MOST_TIMES:
        times = times[np.unique(np.linspace(0, len(times) - 1, MOST_TIMES).round().astype(int))]
    asked = shown.classify(stay.record(), prediction_times=times.tolist(), top_k=1)
    answers = np.array([answer["scores"][label] for answer in asked])
    hours = shown.extractor.trained_hours
    if hours is None:
        trained = np.arange(len(times)) == len(times) - 1  # the end of the record
    else:
        trained = (times >= np.float32(hours[0])) & (times <= np.float32(hours[1]))
    movers = _movers(shown, stay, label, times, answers)
    return Course(label, shown.is_number, times, answers, trained, asked[-1]["scores"], movers)


def _movers(shown: Shown, stay: Stay, label: str, times: np.ndarray, answers: np.ndarray) -> pd.DataFrame:
    steps = 1 + np.argsort(-np.abs(np.diff(answers)), kind="stable")[:STEPS]
    arrived = np.searchsorted(times, stay.events["time"].to_numpy(np.float32))  # when each event is first seen
    moved = np.flatnonzero(np.isin(arrived, steps))
    found = stay.events.iloc[moved].assign(change=0.0)
    if len(moved):
        others = [np.flatnonzero((arrived <= arrived[at]) & (np.arange(len(arrived)) != at)) for at in moved]
        records = [stay.record(keep) for keep in others]
        hours = [[float(times[arrived[at]])] for at in moved]
        asked = shown.classify(records, prediction_times=hours, top_k=1)
        found["change"] = answers[arrived[moved]] - [answer["scores"][label] for (answer,) in asked]
    return found.sort_values("change", key=np.abs, ascending=False, kind="stable", ignore_index=True)


def answer_html(course: Course) -> str:
    """The latest answer, the plot and the events that moved it."""
    latest = course.text(course.answers[-1])
    first, last = course.text(course.answers[0]), f"hour {course.times[-1]:.4g}"
    alt = f"{course.label} over the stay: {first} at hour {course.times[0]:.4g}, {latest} at {last}."
    picture = io.BytesIO()
    draw(course).savefig(picture, format="svg")
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}"
    rows = "".join(
        f"<tr><td>{number}</td><td>{mover.time:.4g}</td><td>{html.escape(mover.variable)}</td>"
        f"<td>{'' if pd.isna(mover.value) else f'{mover.value:.4g}'}</td>"
        f"<td>{course.change_text(mover.change)}</td></tr>"
        for number, mover in enumerate(course.movers.head(MOVERS).itertuples(), start=1)
    )
    change = "change" if course.is_number else "points"
    head = f"<tr><th></th><th>hour</th><th>variable</th><th>value</th><th>{change}</th></tr>"
    table = f"<table>{head}{rows}</table>" if rows else "<p>Nothing: the stay has events at one time alone.</p>"
    return (
        f'<p class="latest"><strong>{html.escape(course.label)}: {latest}</strong> at {last}</p>'
        f'<img src="{source}" alt="{html.escape(alt)}">{_remark(course)}'
        "<h3>What moved it</h3><p>The answer at that hour, minus that without the event. This tells what the model "
        f"used, and not what caused an outcome.</p>{table}{_every_answer(course)}"
    )


def _every_answer(course: Course) -> str:
    """Of more than two outputs all, as a table."""
    if len(course.latest) <= 2:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(label)}</td><td>{course.text(answer)}</td></tr>"
        for label, answer in course.latest.items()
    )
    return f"<h3>Every answer at hour {course.times[-1]:.4g}</h3><table>{rows}</table>"


def _remark(course: Course) -> str:
    if course.trained.all():
        return ""
    when = "at the end of a stay alone" if course.trained[-1] and course.trained.sum() == 1 else "at other hours"
    return f"<p>Gray and dashed: the model was trained to answer {when}, so what it says here means little.</p>"


def draw(course: Course) -> Figure:
    """The answers as steps, gray and dashed where the model was not trained, with numbers at what moved it."""
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("hours since the stay's start")
    label = textwrap.shorten(course.label, LONGEST_LABEL, placeholder=" …")
    axes.set_ylabel(label if course.is_number else f"predicted probability:\n{label}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ECEEF0")
    axes.set_axisbelow(True)
    end = 1.02 * max(float(course.times[-1]), 1.0)
    times, answers = np.append(course.times, end), np.append(course.answers, course.answers[-1])
    trained = np.append(course.trained, course.trained[-1])
    axes.step(times, answers, where="post", color=GREY, linewidth=1.2, linestyle="--")
    shown = np.where(trained | np.append([False], trained[:-1]), answers, np.nan)  # a step belongs to its beginning
    axes.step(times, shown, where="post", color=BLUE, linewidth=2)
    axes.plot(course.times[course.trained][-1:], course.answers[course.trained][-1:], "o", color=BLUE, markersize=4)
    axes.set_xlim(0, end)
    if not course.is_number:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(0, min(1.05, max(LEAST_SHOWN, 1.35 * float(course.answers.max()))))
    movers = course.movers.head(MOVERS)
    at = np.searchsorted(course.times, movers["time"].to_numpy(np.float32))
    number_events(axes, course.times[at], course.answers[at], movers["change"].tolist(), LETTERS)
    return figure
