"""`paradit calibrate` and `paradit doctor`: bad input, and what is found here."""

import json
import subprocess
import sys

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "paradit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "machine.json"), ".toml"),
        (("-o", "there/machine.toml"), "there"),
        (("-o", "x.toml", "--ranks", "0"), "ranks"),
    ],
)
def test_bad_input_gets_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = run("calibrate", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr


def test_the_doctor_finds_what_is_here() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["versions"]["torch"]
    assert found["devices"][0]["memory_bytes"] > 0
    assert found["attention_backends"]["native"] == "ready"
    assert set(found["formats"].values()) == {"ready"}
    assert all("error" not in (part if isinstance(part, dict) else ()) for part in found.values())


def test_a_check_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import paradit.engine.machine_report as doctor_module
    from paradit.cli.commands.doctor_options import DoctorOptions
    from paradit.cli.doctor import doctor

    def broken() -> None:
        raise OSError("not there")

    for name in ("_devices", "_links", "_formats"):
        monkeypatch.setattr(doctor_module, name, broken)
    doctor(DoctorOptions())
    said = capsys.readouterr().out
    for name in ("devices", "links", "formats"):
        assert f"{name} could not be checked: OSError: not there" in said
    assert "ready: native" in said


def test_the_doctor_answers_without_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; from paradit.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "doctor"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "torch" in done.stdout
