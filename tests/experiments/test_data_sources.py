"""The tables of docs/data.md: every source has its place there, and a prepared folder becomes its text."""

from experiments import data_sources
from experiments.data_sources import SOURCES, Source, describe
from experiments.pages import write_block
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.files import write_file


def test_a_source_is_described_in_its_block_of_the_page(synthetic_folder, tmp_path):
    folder, page = PreparedFolder(synthetic_folder), tmp_path / "data.md"
    write_file(page, "before\n<!-- begin simulated -->\nold\n<!-- end simulated -->\nafter\n")
    source = Source("synthetic", "none", "seed 0", block="simulated")
    write_block(page, source.name, "\n".join(describe(source, folder, 1.25, 300.0)))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end simulated -->\nafter\n")
    assert "old" not in text
    assert f"| train | {len(folder.records('train')):,} |" in text
    for task in folder.info.tasks:
        assert f"- `{task.name}`: {task.description}" in text
    assert "Prepared with 1.2 s of processor time and 300 MiB" in text


def test_every_source_has_a_block():
    text = data_sources.PAGE.read_text(encoding="utf-8")
    for source in SOURCES:
        assert f"<!-- begin {source.name} -->" in text
        assert f"<!-- end {source.name} -->" in text
