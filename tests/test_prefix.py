"""Rows that begin alike are computed once as far as they are alike, and give the numbers of whole rows."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TALL, WIDE

from deepintuit.config import ModelConfig
from deepintuit.vlm import Example
from deepintuit.vlm.finetune import Recipe, finetune
from deepintuit.vlm.prefix import grow, in_parts, pack

WRITTEN = (
    "<think>A person waits.</think>theft",
    "<think>A person leaves.</think>theft",
    "<think>A person waits.</think>routine",
    "<think>A person waits.</think>theft",  # as the first
    "<think>A person",  # the begin of others, cut
    "No.",
)

words = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@given(st.lists(words, min_size=1, max_size=7), st.none() | st.integers(0, 7))
def test_every_row_is_a_way_through_its_tree(rows, limit):
    tokens, depths, branches, paths = grow(rows, limit)
    assert sum(length for length, _ in branches) == len(tokens) == len(depths)
    seen, begin = [], 0  # the ancestors of each token
    for length, before in branches:
        seen += [[*before, *range(begin, begin + own)] for own in range(length)]
        begin += length
    says = {}
    for row, path in zip(rows, paths):
        assert len(row) == 1 or [tokens[place] for place in path] == row[:-1]
        for depth, place in enumerate(path[: len(row) - 1]):
            assert depths[place] == depth and seen[place] == path[:depth]
            assert says.setdefault(place, row[depth + 1]) == row[depth + 1], "an entry predicts one token"


@given(st.lists(words, min_size=2, max_size=6), st.integers(1, 5))
def test_tokens_behind_the_limit_are_not_shared(rows, limit):
    *_, paths = grow(rows, limit)
    taken = [set(path[limit:]) for row, path in zip(rows, paths) if len(row) > limit + 1]
    assert sum(map(len, taken)) == len(set().union(*taken)) if taken else True


@given(words, st.lists(words, min_size=1, max_size=6))
def test_a_common_begin_is_computed_once(prompt, ends):
    rows = [[*prompt, 9, *end] for end in ends]
    tokens, *_ = grow(rows)
    distinct = {tuple(row) for row in rows}
    assert tokens.count(9) <= len(distinct)
    assert len(tokens) <= len(prompt) + sum(1 + len(row) - len(prompt) - 1 for row in distinct)


class Budget:
    """Of a model, what `in_parts` asks."""

    def __init__(self, most: int = ModelConfig().tokens_per_pass, share: bool = True):
        self.shares_prefix, self.tokens_per_pass = share, most


def begin(rows):
    """How many tokens all of these rows begin with."""
    return next((at for at, told in enumerate(zip(*rows)) if len(set(told)) > 1), min(map(len, rows)))


def computed(rows):
    return len(grow(rows)[0])


@given(st.lists(st.tuples(st.integers(0, 2), words), min_size=1, max_size=12), st.integers(1, 30), st.booleans())
def test_parts_hold_each_row_once_and_a_clip_is_parted_only_for_what_lies_behind_its_prompt(drawn, most, share):
    names = [object() for _ in range(3)]
    clips, rows = [names[clip] for clip, _ in drawn], [[9, 9, 9, *row] for _, row in drawn]
    parts = in_parts(Budget(most, share), clips, rows)
    assert sorted(row for part in parts for row in part) == list(range(len(rows)))

    def of(name, part):
        return [rows[row] for row in part if clips[row] is name]

    for part in parts:
        shown = {clips[row] for row in part}
        if not share:
            assert len(part) == 1 or sum(len(rows[row]) for row in part) <= most
        elif len(shown) > 1:
            assert sum(computed(of(name, part)) for name in shown) <= most
        else:
            [name] = shown
            assert len(part) == 1 or computed(of(name, part)) - begin(of(name, range(len(rows)))) <= most
    for name in names:
        members, holding = of(name, range(len(rows))), [part for part in parts if of(name, part)]
        if share and members and sum(len(row) - begin(members) for row in members) <= most:
            assert len(holding) == 1
        if len(holding) > 1:  # as few as can be, and no two neighbours would go together
            loads = [sum(map(len, of(name, part))) if not share else computed(of(name, part)) for part in holding]
            assert all(one + two > most for one, two in zip(loads, loads[1:]))


@pytest.mark.parametrize(
    ("prompt", "traces", "length", "tokens"),
    [(4_300, 8, 600, 9_100), (4_300, 8, 2_048, 20_684), (8_500, 16, 1_024, 24_884), (16_000, 8, 1_024, 24_192)],
)
def test_at_real_size_a_prompt_is_paid_for_once_a_group(prompt, traces, length, tokens):
    """The shapes of a 7B's loss: 32 frames and the paper's traces, VideoAuto-R1's 16, and a clip of many frames."""
    rows = [[*range(prompt), *[prompt + number] * length] for number in range(traces)]
    parts = in_parts(Budget(), [None] * traces, rows)
    assert sum(computed([rows[row] for row in part]) for part in parts) == tokens - 1  # the last one predicts nothing


def test_a_group_that_must_be_parted_is_parted_evenly():
    rows = [[*range(100), *[100 + number] * 50] for number in range(9)]
    parts = in_parts(Budget(200), [None] * 9, rows)
    assert [len(part) for part in parts] == [3, 3, 3], "and not 4, 4, 1"


def test_rows_that_are_alike_stand_in_one_part_whatever_their_order():
    rows = [[*range(100), *[100 + number % 2] * 40, number] for number in range(8)]
    parts = in_parts(Budget(60), [None] * 8, rows)
    assert sorted(sorted(part) for part in parts) == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return tiny.write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module", params=[(name, rank) for name in tiny.SHARING for rank in (0, 4)], ids=str)
def vlm(request, tmp_path_factory):
    name, rank = request.param
    family = tiny.write_family(name, tmp_path_factory.mktemp(name) / "model")
    torch.manual_seed(1)
    vlm = family.load(trainable=True, lora_rank=rank)
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:  # at birth an adapter changes nothing
            torch.nn.init.normal_(parameter, std=0.05)
    return vlm


def encoded(vlm, paths, name):
    _, height, width, _ = tiny.CLIPS[name]
    return vlm.encoder.encode(name, paths[name], width, height)


def numbers_and_gradient(vlm, clips, rows, firsts, share):
    vlm.shares_prefix = share
    packed = pack(vlm, clips, rows, firsts)
    vlm.model.zero_grad()
    out = vlm.model(**packed.inputs, fused_lm_head=True)
    told = torch.cat([out.log_probs.flatten()[places] for places in packed.places])
    (told * torch.linspace(-1, 1, len(told))).sum().backward()
    moved = [p.grad.flatten() for p in vlm.model.parameters() if p.requires_grad and p.grad is not None]
    return told.detach(), torch.cat(moved), packed.inputs["input_ids"].numel()


@pytest.fixture(scope="module")
def work(vlm, paths):
    """Traces of two clips, mixed; scored behind their prompts, which are unlike for one clip."""
    wide, tall = encoded(vlm, paths, WIDE), encoded(vlm, paths, TALL)
    clips, rows, firsts = [], [], []
    for text in WRITTEN:
        for clip, prompt in ((wide, "What happens?"), (tall, f"What happens? {text[-4:]}")):
            asked = vlm.prompt_ids(clip, prompt)
            clips.append(clip)
            rows.append(asked + (vlm.target_ids(text) if "<" not in text[-8:] else vlm.tokenizer(text)["input_ids"]))
            firsts.append(len(asked))
    return clips, rows, firsts


def test_a_tree_gives_the_numbers_and_gradients_of_whole_rows(vlm, work):
    plain, plain_gradient, plain_tokens = numbers_and_gradient(vlm, *work, share=False)
    shared, shared_gradient, shared_tokens = numbers_and_gradient(vlm, *work, share=True)
    assert len(plain) == sum(len(row) - first for row, first in zip(work[1], work[2]))
    assert (plain - shared).abs().max() < 1e-5
    assert (plain_gradient - shared_gradient).norm() < 1e-4 * plain_gradient.norm()
    assert shared_tokens < plain_tokens / 2


def test_activation_checkpointing_changes_nothing_behind_a_shared_prefix(vlm, work):
    _, gradient, _ = numbers_and_gradient(vlm, *work, share=True)
    vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
    vlm.model.enable_input_require_grads()
    vlm.model.train()
    try:
        _, again, _ = numbers_and_gradient(vlm, *work, share=True)
    finally:
        vlm.model.gradient_checkpointing_disable()
        vlm.model.eval()
    assert (gradient - again).norm() < 1e-5 * gradient.norm()


def test_mixed_precision_is_as_near_behind_a_shared_prefix_as_without_one(vlm, work):
    exact, _, _ = numbers_and_gradient(vlm, *work, share=True)
    with torch.autocast("cpu", torch.bfloat16):
        plain, _, _ = numbers_and_gradient(vlm, *work, share=False)
        shared, _, _ = numbers_and_gradient(vlm, *work, share=True)
    assert 0 < (shared - exact).abs().mean() < 2 * (plain - exact).abs().mean()


def test_tokens_kept_apart_have_an_entry_each(vlm, work):
    vlm.shares_prefix = True
    packed = pack(vlm, *work, apart=True)
    places = torch.cat(packed.places)
    assert len(places.unique()) == len(places)
    assert (packed.inputs["shift_labels"] != -100).sum() == len(places)


@settings(max_examples=5, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(vlm, work, random):
    clips, rows, firsts = work
    order = list(range(len(rows)))
    random.shuffle(order)
    vlm.shares_prefix = True
    found = []
    with torch.no_grad():
        for chosen in (range(len(rows)), order):
            packed = pack(vlm, *([part[i] for i in chosen] for part in (clips, rows, firsts)))
            out = vlm.model(**packed.inputs, fused_lm_head=True).log_probs.flatten()
            found.append({i: out[places] for i, places in zip(chosen, packed.places)})
    for number, told in found[0].items():
        torch.testing.assert_close(told, found[1][number], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch", "together"), [(3, False), (48, True)])
def test_fine_tuning_behind_a_shared_prefix_ends_with_the_weights_of_the_plain_path(batch, together, paths, tmp_path):
    """Rows of a clip stand together where a batch has room for 16 clips, and come as drawn where it has not."""
    family = tiny.write_family("embedded", tmp_path / "model")
    ends = []
    for share in (False, True):
        torch.manual_seed(0)
        vlm = family.load(trainable=True, share_prefix=share)
        clips = [encoded(vlm, paths, name) for name in (WIDE, TALL)]
        asked = [Example(clips[row % 2], "What happens?", WRITTEN[row]) for row in range(6)]
        seen = []

        def example(row, epoch, asked=asked, seen=seen):
            seen.append(row)
            return asked[row]

        recipe = Recipe(1e-3, 2, batch, scheduler="constant", warmup=0)
        names = [("wide", "tall")[row % 2] for row in range(6)]
        finetune(vlm, names, example, recipe, tmp_path / f"training-{share}", seed=0, title="t", progress=False)
        ends.append(torch.cat([p.detach().flatten() for p in vlm.model.parameters() if p.requires_grad]))
        apart = [len({row % 2 for row in seen[at : at + 3]}) for at in range(0, 12, 3)]
        assert (set(apart) == {1}) == together
    moved = ends[0] - ends[1]
    assert moved.norm() < 1e-4 * ends[0].norm()
