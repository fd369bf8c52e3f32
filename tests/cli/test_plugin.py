"""A plug-in package (tests/plugin) that brings a form of attention, a method, a launcher and a family."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel

import paradit
import warm
from made_videos import latents_in
from messages import says
from paradit.attention.registry import FORMS, Choice
from paradit.attention.timing import layer
from paradit.config import plugins
from paradit.config.errors import InputError
from paradit.distributed.timing import Link
from paradit.distributed.world import join_world
from paradit.planner.step import forward
from paradit.sampling.noise import initial_noise
from paradit.tuning.rehearsal import rehearse
from paths import PLUGIN
from planner_cases import branch, cluster
from rehearsed_attention import DEPTH, HEADS, LAYERS, SHARES, TOKENS, Kernel, block_cost
from tiny import TEXT_DIM, all_random, tokenizer

SIZE = {"width": 48, "height": 32, "num_frames": 9, "num_inference_steps": 3}
PROMPT, SEED = "a red circle", 11
ELSEWHERE = Path(tempfile.gettempdir())
"""Working folder away from the package's source, so that the installed package is found."""


def install(folder: Path, entry_points: dict[str, dict[str, str]], version: str = "1.0") -> dict[str, str]:
    """Install the package into an empty folder, as pip does; return the environment that finds it."""
    for package in ("paradit_extra", "paradit_cogvideox"):
        shutil.copytree(PLUGIN / package, folder / package)
    about = folder / f"paradit_extra-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: paradit-extra\nVersion: {version}\n")
    sections = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in names.items())
        for group, names in entry_points.items()
    ]
    (about / "entry_points.txt").write_text("\n".join(sections))
    own = str(Path(paradit.__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}{os.pathsep}{own}"}


def test_it_is_as_short_as_promised() -> None:
    def lines(package: str) -> int:
        return sum(len(path.read_text().splitlines()) for path in (PLUGIN / package).rglob("*.py"))

    assert lines("paradit_extra") <= 150
    assert lines("paradit_cogvideox") <= 250
    family = "".join(path.read_text() for path in (PLUGIN / "paradit_cogvideox").rglob("*.py"))
    assert "models.wan" not in family
    assert "models.hunyuan" not in family


def declared() -> dict[str, dict[str, str]]:
    entry_points: dict[str, dict[str, str]] = tomllib.loads((PLUGIN / "pyproject.toml").read_text())[
        "project"
    ]["entry-points"]
    return entry_points


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install(tmp_path_factory.mktemp("site"), declared())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-cogvideox"
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=3, attention_head_dim=32, in_channels=4, out_channels=4, time_embed_dim=24,
        text_embed_dim=TEXT_DIM, num_layers=2, sample_width=6, sample_height=4, max_text_seq_length=20,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    text = T5Config(vocab_size=259, d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    CogVideoXPipeline(
        tokenizer=tokenizer(),
        text_encoder=T5EncoderModel(text).eval(),
        vae=vae.eval(),
        transformer=all_random(transformer),
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    ).save_pretrained(folder)
    (folder / "paradit.json").write_text(json.dumps(SIZE))
    return folder


def command(env: dict[str, str], *words: str, cwd: Path = ELSEWHERE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paradit", *words],
        env=env, cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_makes_the_videos_of_diffusers_on_one_and_two_ranks(
    env: dict[str, str], model: Path, tmp_path: Path
) -> None:
    pipe = CogVideoXPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    text = {"max_sequence_length": 20, "guidance_scale": 6.0}
    noise = initial_noise((1, 4, 3, 4, 6), SEED, torch.device("cpu")).transpose(1, 2)
    expected = pipe(PROMPT, latents=noise, output_type="latent", **text, **SIZE).frames.transpose(1, 2)
    words = ["generate", PROMPT, "--model", str(model), "--seed", str(SEED), "--dtype", "fp32", "--overwrite"]
    ways: tuple[tuple[list[str], dict[str, str]], ...] = (
        ([], env),
        (["--ranks", "2", "--attention", "gathered"], env | {"PARADIT_LAUNCHER": "interpreters"}),
    )
    for options, environ in ways:
        done = warm.run([*words, "--latents", "l.safetensors", "-o", "v.mp4", *options], tmp_path, environ)
        assert done.returncode == 0, done.stderr
        made = latents_in(tmp_path)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
        assert expected.std() > 0.1


def test_a_method_makes_videos_on_one_and_two_ranks(env: dict[str, str], tmp_path: Path) -> None:
    words = ["generate", PROMPT, "--method", "clips", "--block-frames", "2", "--size", "32x32", "--json"]
    words += ["--num-frames", "17", "--num-inference-steps", "2", "--overwrite"]
    made = []
    for ranks in ([], ["--ranks", "2"]):
        files = ["--latents", "l.safetensors", "-o", "v.mp4"]
        done = warm.run([*words, *files, *ranks], tmp_path, env)
        assert done.returncode == 0, done.stderr
        made.append(latents_in(tmp_path))
    assert made[0].shape[2] == 5
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-5)
    refused = command(env, *words, "--prompt-at", "0.5s", "a blue ring", cwd=tmp_path)
    assert refused.returncode == 2
    assert says(refused.stderr, "method clips .. prompts_at, use dualparal")


def test_help_and_plan_know_them(env: dict[str, str], model: Path, tmp_path: Path) -> None:
    off = env | {"PARADIT_PLUGINS": "off"}
    told = " ".join(command(env, "generate", "--help").stdout.split())
    assert "gathered" in told
    assert "clips: cuts" in told
    assert says(told, "PARADIT_LAUNCHER .. local, interpreters.")
    assert "gathered" not in command(off, "generate", "--help").stdout
    wan = ["plan", "--model", "Wan2.1-T2V-1.3B-Diffusers", "--gpus", "2xL40", "--json"]
    ways, without = (json.loads(command(one, *wan).stdout)["compared"] for one in (env, off))
    assert ways > without  # `gathered` is simulated too
    words = ["plan", "--model", str(model), "--gpus", "2xL40", "--num-frames", "9", "--size", "48x32"]
    done = command(env, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "paradit generate PROMPT" in done.stdout
    nowhere = command(env | {"PARADIT_LAUNCHER": "nothing"}, "generate", PROMPT, "--ranks", "2", cwd=tmp_path)
    assert nowhere.returncode == 2
    assert says(nowhere.stderr, "launcher .. local, interpreters, got 'nothing'")
    refused = command(off, *words)
    assert refused.returncode == 2
    assert "CogVideoXPipeline, which is not supported" in refused.stderr


def test_one_that_cannot_be_imported_is_named_in_one_line_and_left_out(tmp_path: Path) -> None:
    env = install(tmp_path, {"paradit.attention": {"ash": "paradit_extra.ash:ASH", "ring": "x:Y"}})
    (tmp_path / "paradit_extra" / "ash.py").write_text("raise OSError('no\\n coal')\n")
    done = command(env, "generate", "--help")
    assert done.returncode == 0
    shadowing, broken = done.stderr.splitlines()
    assert says(shadowing, "Warning: .. attention 'ring' of x:Y is left out")
    assert says(broken, "Warning: .. attention 'ash' .. no coal")
    assert " ash" not in done.stdout
    asked = command(env, "generate", PROMPT, "--ranks", "2", "--attention", "ash", "--dry-run")
    assert asked.returncode == 2
    assert asked.stderr.splitlines()[-1].endswith("'ash', a plug-in, cannot be imported: no coal")


def joined(rank: int, folder: str, env: dict[str, str]) -> None:
    sys.path.insert(0, env["PYTHONPATH"].partition(os.pathsep)[0])
    plugins._all_points.cache_clear()  # this process is forked from one that may have looked for plug-ins
    if rank:
        os.environ["PARADIT_PLUGINS"] = "off"
    try:
        with join_world(rank, 2, Path(folder) / "meet", timeout=60):
            said = "joined"
    except InputError as error:
        said = str(error)
    (Path(folder) / str(rank)).write_text(said)


def test_all_ranks_must_have_the_same(env: dict[str, str], tmp_path: Path) -> None:
    context = get_context("fork")
    ranks = [context.Process(target=joined, args=(rank, str(tmp_path), env)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    (said,) = {(tmp_path / str(rank)).read_text() for rank in range(2)}
    assert says(said, "ranks 0 and 1 .. only rank 0 .. paradit.attention gathered of paradit-extra 1.0")
    assert "PARADIT_PLUGINS=off" in said


@pytest.mark.parametrize("link", [(0.0, 2.0**-20), (0.25, 2.0**-12)])
def test_its_form_takes_the_time_that_is_simulated(
    link: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(PLUGIN)
    gathered = importlib.import_module("paradit_extra.gathered").GATHERED
    monkeypatch.setitem(FORMS._found, "gathered", gathered)
    choice, (latency, seconds_per_byte) = Choice.of("gathered"), link
    one = branch(cluster(2, latency, 1 / seconds_per_byte), SHARES)
    simulation = forward([(one, layer(one, choice))], LAYERS)
    value = torch.empty(2, TOKENS // 2, HEADS, DEPTH, device="meta")
    blocks = [block_cost(value, 1)] * LAYERS
    expected = rehearse(choice, SHARES, 0, link=Link(*link), streams=1, blocks=blocks, kernel=Kernel())
    assert simulation.seconds == pytest.approx(expected, rel=1e-12)
