"""Settings: flags over a YAML file over defaults; every wrong value is one error message."""

from pathlib import Path

import pytest

import main_denoise_cae
import main_recogniser
from util import settings

PARSERS = {"main_denoise_cae": main_denoise_cae.build_parser, "main_recogniser": main_recogniser.build_parser}
OUT_OF_BOUNDS = {
    "img_size": (31,),
    "guide_drop": (1.1,),
    "latent_dim": (0,),
    "augment": (2,),
    "workers": (257,),
    "epochs": (0,),
    "batch_size": (0,),
    "accum_iter": (0,),
    "smoothing": (1.5,),
    "ema_decay": (1.01,),
    "seed": (2**32,),
    "threads": (10**5,),
    "log_every": (0,),
}


def parse(tmp_path, text, *flags, build_parser=main_denoise_cae.build_parser):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return settings.parse(build_parser(), ["--config", str(file), *flags])


def refused(capsys, *arguments, **options) -> str:
    """The last line of the error message."""
    with pytest.raises(SystemExit) as end:
        parse(*arguments, **options)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_flags_over_file_over_defaults(tmp_path):
    s = parse(tmp_path, "lr: 1e-3\nepochs: 7\nbf16: false\nresume:\n", "--epochs", "9")
    assert (s.lr, s.epochs, s.bf16, s.loss, s.resume) == (1e-3, 9, False, "mse", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "no setting 'epoch', did you mean 'epochs'"),
        ("1: 3", "no setting '1'"),
        ("config: other.yaml", "no setting 'config'"),
        ("epochs: many", "epochs cannot be 'many'"),
        ("epochs: 7.5", "epochs cannot be 7.5"),
        ("epochs:", "epochs has no value"),
        ("epochs: 0", "epochs must be in [1, inf), not 0"),
        ("guide_drop: 1.5", "guide_drop must be in [0, 1], not 1.5"),
        ("loss: msee", "loss must be one of mse, bce"),
        ("bf16: maybe", "bf16 must be true or false"),
        ("- 1", "not a table"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, capsys, text, message):
    error = refused(capsys, tmp_path, text)
    assert "recipe.yaml" in error and message in error


@pytest.mark.parametrize("name", PARSERS)
def test_every_number_has_bounds(tmp_path, capsys, name):
    numbers = [action for action in PARSERS[name]()._actions if action.type and not action.choices]
    assert len(numbers) > 12
    assert all(action.type(str(action.default)) == action.default for action in numbers if action.default is not None)
    for action in numbers:
        for value in (-1, "nan", "inf", "-inf", "many", *OUT_OF_BOUNDS.get(action.dest, ())):
            flag = action.option_strings[0]
            error = refused(capsys, tmp_path, "", f"{flag}={value}", build_parser=PARSERS[name])
            assert f"error: argument {'/'.join(action.option_strings)}: " in error
            yaml = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}.get(value, value)
            error = refused(capsys, tmp_path, f"{action.dest}: {yaml}", build_parser=PARSERS[name])
            assert f"recipe.yaml: {action.dest} " in error


def test_a_huge_integer_is_refused_without_a_traceback(tmp_path, capsys):
    assert "argument --seed: must be in [0, 4294967295]" in refused(capsys, tmp_path, "", f"--seed={10**400}")


def test_every_recipe_is_accepted():
    for file in sorted((Path(__file__).parent.parent / "configs").glob("*.yaml")):
        main = main_recogniser if file.stem.startswith(("recogniser", "reader")) else main_denoise_cae
        assert settings.parse(main.build_parser(), ["--config", str(file)]).output_dir == f"runs/{file.stem}"
