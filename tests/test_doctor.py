"""What is looked at before a run, and that no secret is shown."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from configs.errors import UserError
from wizard_jax.cli import main
from wizard_jax.doctor import EXTRAS, PACKAGES, check_platforms, extra_for, findings


def found(*folders: Path) -> dict[str, tuple[str, str]]:
    return {what: (state, advice) for what, state, advice in findings(folders)}


def test_versions_devices_and_folders_are_those_that_are_here(tmp_path: Path) -> None:
    told = found(tmp_path / "new" / "run")
    for name in PACKAGES:
        assert told[name][0] == importlib.metadata.version(name)
    assert told["devices"][0].startswith("8 x ")
    assert told[f"folder {tmp_path / 'new' / 'run'}"] == ("writable", "")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_can_not_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    state, advice = found(tmp_path / "file" / "run")[f"folder {tmp_path / 'file' / 'run'}"]
    assert state.startswith("not writable")
    assert advice


def test_keys_are_found_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    told = found()
    assert told["OpenAI key"][0] == told["Google credentials"][0] == "not found"
    key = tmp_path / "key.json"
    key.write_text('{"private_key": "very secret"}')
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    told = found()
    assert told["OpenAI key"] == told["Google credentials"] == ("found", "")
    assert main(["doctor", str(tmp_path)]) == 0
    assert "secret" not in capsys.readouterr().out
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    assert found()["Google credentials"][0] == "not found"


def test_extras_are_told_with_the_way_to_them() -> None:
    told = found()
    for extra, module in EXTRAS.items():
        state, advice = told[f"extra [{extra}]"]
        assert (state == "installed") == (importlib.util.find_spec(module) is not None)
        assert advice == "" or f"pip install 'wizard-jax[{extra}]'" in advice


@pytest.mark.parametrize(
    ("asked", "extra"), [("tpu", "tpu"), ("cuda", "cuda"), ("gpu,cpu", "cuda"), ("cpu,TPU", "tpu")]
)
def test_devices_whose_extra_is_missing_are_refused_by_the_extra_s_name(
    asked: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(EXTRAS[extra]):
        pytest.skip(f"[{extra}] is installed here")
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    with pytest.raises(UserError, match=rf"wizard-jax\[{extra}\]"):
        check_platforms()
    assert f"wizard-jax[{extra}]" in found()["devices"][1]


@pytest.mark.parametrize("asked", ["", "cpu"])
def test_the_cpu_needs_no_extra(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    check_platforms()


def test_an_import_that_fails_is_led_back_to_its_extra() -> None:
    assert extra_for(ModuleNotFoundError("no", name="libtpu.sdk")) == "tpu"
    assert extra_for(ModuleNotFoundError("no", name="jax_cuda12_plugin")) == "cuda"
    assert extra_for(ModuleNotFoundError("no", name="numpy")) is None
    assert extra_for(ImportError("no")) is None
