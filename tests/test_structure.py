"""The rooms of the code import each other one way: docs/architecture.md."""

import pytest

from benchmarks import structure


@pytest.fixture(scope='module')
def arrows():
    return structure.product_arrows(structure.sources())


def test_no_import_runs_up(arrows):
    assert structure.upward(arrows) == []


def test_no_import_is_part_of_a_circle(arrows):
    assert structure.circles(arrows) == []


def test_nothing_imports_a_script():
    files = structure.sources()
    assert structure.script_imports(files, structure.arrows(files)) == []


def test_the_measures_see_what_is_wrong(tmp_path, monkeypatch):
    files = {
        'dnnlib/low.py': 'def f():\n    from training import loop\n',
        'training/loop.py': 'import dnnlib.low\n',
        'training/beside.py': 'import importlib\nx = importlib.import_module(\n    "train")\n',
        'train.py': '"""Text\n\nof it."""\n# x\n\ny = 1\n',
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(structure, 'ROOT', tmp_path)
    found = [structure._source(path) for path in files]
    arrows = structure.product_arrows(found)
    assert structure.upward(arrows) == [('dnnlib.low', 'training.loop'), ('training.beside', 'train')]
    assert structure.circles(arrows) == [('dnnlib.low', 'training.loop'), ('training.loop', 'dnnlib.low')]
    assert structure.script_imports(found, arrows) == [('training.beside', 'train')]
    assert [structure.code_lines(source) for source in found] == [(2, 2), (1, 1), (3, 2), (1, 1)]
    assert structure.functions(found[0]) == [structure.Function('dnnlib/low.py', 'f', 2)]
