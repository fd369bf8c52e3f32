"""Prompts files: text with a prompt on each line, and JSON lines with a request on each."""

import json
from pathlib import Path
from typing import Any

import pytest

from paradit.cli.commands.generate_options import GenerateOptions
from paradit.cli.jobs import make_jobs, read_prompts
from paradit.config.errors import InputError
from paradit.config.methods.dualparal import QueueRequest
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.models.folder import bundled_folder
from paradit.models.spec import read_spec


def requests_of(path: Path, *lines: Any, **options: Any) -> list[ResolvedRequest]:
    """Write a prompts file, and return the requests that it stands for."""
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    given = GenerateOptions(prompts_file=path, output=str(path.parent / "videos"), **options)
    return [
        job.request for job in make_jobs(given, read_prompts(given), read_spec(bundled_folder()), Placement())
    ]


def test_a_request_on_each_line(tmp_path: Path) -> None:
    first, second, third = requests_of(
        tmp_path / "a.jsonl",
        {"prompt": "a red circle", "width": 64, "num_frames": 9, "seed": 7},
        "",
        "# a comment",
        {"prompt": "a blue ring", "method": "dualparal", "block_frames": 3, "prompts_at": [[2, "a ring"]]},
        {"prompt": "a ring", "guidance_scale": 1},
        height=32,
        num_inference_steps=3,
        duration="5s",
    )
    assert (first.width, first.height, first.num_frames, first.trim, first.seed) == (64, 32, 9, False, 7)
    assert isinstance(second, QueueRequest)
    assert (second.block_frames, second.prompts_at, second.num_frames) == (3, ((2.0, "a ring"),), 80)
    assert (third.guidance_scale, third.num_inference_steps, third.seed) == (1, 3, 0)


def test_text_stays_text(tmp_path: Path) -> None:
    line = '{"prompt": "a red circle"}'
    assert [request.prompt for request in requests_of(tmp_path / "a.txt", line)] == [line]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a red circle", "cannot be read as JSON"),
        ("[1]", "must hold a JSON object"),
        ({}, "prompt must be a text, got None"),
        ({"prompt": "a", "widht": 3}, "unknown field 'widht': did you mean 'width'?"),
        ({"prompt": "a", "width": "wide"}, "width must be a whole number, got 'wide' (str)"),
        ({"prompt": "a", "width": 17}, "size must be multiples of 16 pixels"),
        ({"prompt": "a", "image": 5}, "image must be a text, got 5 (int)"),
        ({"prompt": "a", "image": ""}, "image is empty (''): give a name"),
        ({"prompt": "a", "preset": ""}, "preset must be one of shapes-4"),
        ({"prompt": "a", "strength": 0.5}, "strength needs video"),
        ({"prompt": "a", "prompts_at": [["x", 1]]}, "prompts_at must be"),
        ({"prompt": "a", "seed": "random"}, "seed must be a whole number"),
        ({"prompt": "a", "options": {}}, "unknown field 'options'"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        requests_of(tmp_path / "a.jsonl", {"prompt": "a"}, line)
    said = str(refused.value)
    assert "a.jsonl': line 2" in said
    assert message in said
    assert "\n" not in said


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a", "image": "b/c.png", "video": "https://x.org/a.mp4", "last_image": "/d.png"}'
    )
    (given,) = read_prompts(GenerateOptions(prompts_file=tmp_path / "a.jsonl"))
    assert given.fields["image"] == str(tmp_path / "b/c.png")
    assert given.fields["last_image"] == "/d.png"
    assert given.fields["video"] == "https://x.org/a.mp4"
