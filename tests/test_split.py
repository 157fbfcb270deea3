import hashlib
from collections import Counter

import pytest

from datasets.hands import gb2312_level1
from datasets.split import SPLITS, check_no_leak, forms, group_of, split_hash, split_of


def test_forms_are_simplified_traditional_and_japanese():
    assert forms("国") == ["国", "國"]
    assert forms("國") == ["国", "國"]
    assert forms("发") == ["发", "發", "発"]
    assert forms("永") == ["永"]
    with pytest.raises(ValueError, match="one character"):
        forms("国家")


@pytest.mark.parametrize("family", ["发發髮発髪", "国國", "户戶戸", "龙龍竜", "台臺颱檯", "后後", "\uf900豈", "\u2f00一", "学學"])
def test_forms_and_compatibility_forms_are_one_group(family):
    assert {group_of(char) for char in family} == {group_of(family[0])}
    assert group_of(family[0]) <= min(family)


def test_unrelated_characters_are_different_groups():
    assert len({group_of(char) for char in "己已巳未末土士人入国门"}) == 11
    assert group_of("A") == "A" and group_of("あ") == "あ"
    with pytest.raises(ValueError, match="one character"):
        group_of("")


def test_groups_stay_small():
    sizes = Counter(map(group_of, {form for char in gb2312_level1() for form in forms(char)}))
    assert max(sizes.values()) <= 5
    assert len(sizes) > 3700


def test_all_forms_of_a_character_are_in_one_group():
    for char in gb2312_level1():
        assert len({group_of(form) for form in forms(char)}) == 1, char


def test_split_is_a_hash_of_the_group_alone():
    number = int(hashlib.sha256("永".encode()).hexdigest()[:16], 16) / 16**16
    assert split_of("永") == ("test" if number < 0.1 else "val" if number < 0.15 else "train")
    counts = Counter(split_of(group_of(char)) for char in gb2312_level1())
    assert set(counts) == set(SPLITS)
    assert counts["test"] / 3755 == pytest.approx(0.10, abs=0.015)
    assert counts["val"] / 3755 == pytest.approx(0.05, abs=0.01)


def test_the_split_is_frozen():
    # A change invalidates the test set of every published score: it needs a very good reason.
    assert "".join(char for char in gb2312_level1()[:100] if split_of(group_of(char)) == "test") == "暗百班梆傍剥"
    assert split_hash(map(group_of, gb2312_level1())) == "0fe5c3efd86d"


def test_a_form_in_several_splits_is_refused():
    groups = {name: next(char for char in gb2312_level1() if split_of(char) == name) for name in SPLITS}
    check_no_leak("永国國永", [groups[name] for name in ("train", "test", "test", "train")])
    with pytest.raises(ValueError, match="^1 forms are in several splits: 永 in test and train$"):
        check_no_leak("永国永", [groups[name] for name in ("train", "test", "test")])
    with pytest.raises(ValueError, match="永 in test and train and val"):
        check_no_leak("永永永", groups.values())


def test_the_list_of_leaks_is_cut_short():
    chars = gb2312_level1()[:60]
    train, test = (next(char for char in gb2312_level1() if split_of(char) == name) for name in ("train", "test"))
    with pytest.raises(ValueError, match="^60 forms .* and 40 more$"):
        check_no_leak([*chars, *chars], [train] * 60 + [test] * 60)


def test_split_hash_depends_on_the_groups_and_not_on_their_order():
    assert split_hash("永春明") == split_hash("明永春春")
    assert split_hash("永春明") != split_hash("永春")
    assert len(split_hash("永")) == 12
