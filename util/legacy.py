"""Names that earlier versions wrote into checkpoints, run folders and weights, and what they are called now."""

SETTINGS = {"side": "img_size", "accumulate": "accum_iter"}
STATE = {"step": "global_step", "held_to": "resume_fingerprint"}
BEST = {"damaged_psnr": "degraded_psnr"}
LOG = {"step": "global_step", "val_damaged_psnr": "val_degraded_psnr"}
FINGERPRINT = {**SETTINGS, "damage loss": "damage spalling"}
SINCE = {"brush": 0.0}  # settings that earlier trainings did not have, and the value that gives what they computed


def rename(content: dict, names: dict[str, str]) -> dict:
    """The same entries in the same order, under the current names."""
    return {names.get(key, key): value for key, value in content.items()}


def settings(old: dict) -> dict:
    """Settings of a run or of weights under their current names."""
    return rename(old, SETTINGS)


def log_row(old: dict) -> dict:
    """A line of log.jsonl under its current names."""
    return rename(old, LOG)


def checkpoint(old: dict) -> dict:
    """A checkpoint's content under its current names."""
    content = rename(old, STATE)
    for key, names in (("settings", SETTINGS), ("resume_fingerprint", FINGERPRINT), ("best", BEST)):
        if key in content:
            content[key] = rename(content[key], names)
    if "augment" in content.get("resume_fingerprint", {}):  # of a network, not of the recogniser
        content["resume_fingerprint"] = {**SINCE, **content["resume_fingerprint"]}
    return content
