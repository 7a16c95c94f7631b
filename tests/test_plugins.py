"""KD methods of other packages, by their entry points; the template of the tutorial is one."""

import sys
from pathlib import Path

import pytest

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.distil.baselines import method_of
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host import keys, plugins

TEMPLATE = Path(__file__).parent.parent / "docs" / "tutorials" / "kd_method"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install an entry point as pip does: metadata in a folder on the path."""

    def install(name: str, value: str, package: str = "my-kd-method") -> None:
        folder = tmp_path / "site" / f"{package.replace('-', '_')}-0.1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
        (folder / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(str(folder.parent))
        forget()

    monkeypatch.syspath_prepend(str(TEMPLATE))
    yield install
    monkeypatch.undo()
    sys.modules.pop("my_kd_method", None)
    forget()


def forget() -> None:
    plugins.found.cache_clear()
    plugins.load.cache_clear()
    keys.key_table.cache_clear()


def test_the_template_is_a_value_of_kd(installed, settings, tmp_path):
    entry = (TEMPLATE / "pyproject.toml").read_text().split(f'entry-points."{plugins.GROUP}"]\n')[1].splitlines()[0]
    name, value = entry.replace('"', "").split(" = ")
    installed(name, value)
    assert keys.preset(name) == {"kd_loss": name, **method_of(name).preset}
    found = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd=name, kd_top_items=3))["result"]
    assert found["distillation"][-1]["kd_loss"] > 0
    assert f"{name}(target" in next((tmp_path / "out" / "log").rglob("*.log")).read_text()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("broken", "no_such_module:METHOD", ["broken", "my-kd-method", "cannot be loaded"]),
        ("strange", "json:dumps", ["strange", "no KD method"]),
        ("rd", "my_kd_method:METHOD", ["rd", "my-kd-method", "one of ours"]),
    ],
)
def test_what_is_wrong_with_a_package_is_said(name, value, words, installed, settings):
    installed(name, value)
    with pytest.raises(UserError) as error:
        run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd=name))
    assert all(word in str(error.value) for word in words)


def test_two_packages_of_one_name(installed):
    installed("mine", "my_kd_method:METHOD")
    installed("mine", "json:dumps", package="another")
    with pytest.raises(UserError, match=r"Two packages have a KD method mine"):
        plugins.found()
