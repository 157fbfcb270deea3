import pytest

from main_denoise_cae import build_parser
from util import settings


def parse(tmp_path, text, *flags):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return settings.parse(build_parser(), ["--config", str(file), *flags])


def test_command_line_over_file_over_defaults(tmp_path):
    s = parse(tmp_path, "lr: 1e-3\nepochs: 7\nbf16: false\n", "--epochs", "9")
    assert (s.lr, s.epochs, s.bf16, s.loss) == (1e-3, 9, False, "mse")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "no setting 'epoch', did you mean 'epochs'"),
        ("epochs: many", "epochs cannot be 'many'"),
        ("loss: msee", "loss is one of mse, bce"),
        ("bf16: maybe", "bf16 is true or false"),
        ("- 1", "not a table"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as end:
        parse(tmp_path, text)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_every_config_is_read():
    from pathlib import Path

    for file in sorted((Path(__file__).parent.parent / "configs").glob("*.yaml")):
        assert settings.parse(build_parser(), ["--config", str(file)]).output_dir == f"runs/{file.stem}"
