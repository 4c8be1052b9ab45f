"""A hybrid model (two attention layers, six with a gated delta rule) on pages and states.

Forks, checkpoints, rollback of speculation, aborted steps, prefixes and preemption give what
computing everything anew gives, bit for bit. Products are made token by token, so that rounding
depends on nothing but the token."""

from __future__ import annotations

import numpy as np
import pytest

import pagedkv

LAYERS, WIDTH, HEADS, DIM, VOCAB = "RRRARRRA", 32, 2, 16, 50
STATE = (HEADS, DIM, DIM)


class Hybrid:
    """Seeded weights; the cache holds everything that lasts."""

    def __init__(self, storage_limit: int = 32 << 20, prefix: int = 0) -> None:
        rng = np.random.default_rng(3)
        draw = lambda *shape: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        self.embed = draw(VOCAB, WIDTH)
        self.weights = [[draw(HEADS * DIM, WIDTH) for _ in "qkv"] for _ in LAYERS]
        self.gates = [draw(2 * HEADS, WIDTH) for _ in LAYERS]
        self.out = [draw(WIDTH, HEADS * DIM) for _ in LAYERS]
        self.cache = pagedkv.Cache(
            [
                pagedkv.Group(LAYERS.count("A"), HEADS, DIM, dtype="f32"),
                pagedkv.Group(LAYERS.count("R"), 0, 0, state_bytes=4 * int(np.prod(STATE))),
            ],
            memory_limit=storage_limit,
            prefix=prefix,
            debug=3,
        )
        self.plan = self.cache.plan()

    def _recurrent(self, layer: int, index: int, x: np.ndarray, start, slots) -> np.ndarray:
        """The layer over the new tokens of one entry; writes the states that are wanted."""
        state = np.zeros(STATE, np.float32)
        if start is not None:
            state = self.cache.read_state(0, start, index).view(np.float32).reshape(STATE)
        result = np.empty((len(x), HEADS * DIM), np.float32)
        for t, row in enumerate(x):
            q, k, v = (np.dot(w, row).reshape(HEADS, DIM) for w in self.weights[layer])
            k = k / np.sqrt((k * k).sum(-1, keepdims=True) + np.float32(1e-6))
            gate = 1 / (1 + np.exp(-np.dot(self.gates[layer], row)))
            decay, rate = gate[:HEADS, None, None], gate[HEADS:, None]
            state = state * decay
            error = (v - (state * k[:, None, :]).sum(-1)) * rate
            state = (state + error[:, :, None] * k[:, None, :]).astype(np.float32)
            result[t] = (state * q[:, None, :]).sum(-1).reshape(-1)
            if t >= len(x) - len(slots):
                self.cache.write_state(0, slots[t - len(x) + len(slots)], index, state)
        return result

    def step(self, entries, keep: int = 1, accepted=None, abort: bool = False) -> np.ndarray:
        """Hidden rows of all new tokens of [(sequence, tokens), ...]."""
        with self.cache.batch() as batch:
            for i, (seq, tokens) in enumerate(entries):
                batch.add(seq, tokens)
                batch.keep_states(i, min(keep, len(tokens)))
            batch.reserve()
            self.plan.build(batch)
            slots = [batch.states(i) for i in range(len(entries))]
            x = np.concatenate([self.embed[tokens] for _, tokens in entries])
            ends = np.cumsum([len(tokens) for _, tokens in entries])
            for layer, kind in enumerate(LAYERS):
                index = LAYERS[:layer].count(kind)
                if kind == "R":
                    y = np.concatenate(
                        [
                            self._recurrent(layer, index, part, *slot)
                            for part, slot in zip(np.split(x, ends[:-1]), slots)
                        ]
                    )
                else:
                    q, k, v = (
                        np.stack([np.dot(w, row) for row in x]).reshape(-1, HEADS, DIM)
                        for w in self.weights[layer]
                    )
                    self.plan.write(index, k, v)
                    y = np.zeros_like(q)
                    self.plan.attend(index, q, y)
                    y = y.reshape(len(x), -1)
                x = np.tanh(x + np.stack([np.dot(self.out[layer], row) for row in y]))
            if abort:
                batch.abort()
            elif accepted is None:
                batch.commit()
            else:
                batch.commit_partial(accepted)
        return x


@pytest.fixture
def model():
    made = Hybrid()
    yield made
    made.cache.verify()
    made.cache.close()


def text(n: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, n).tolist()


def anew(model: Hybrid, tokens: list[int]) -> np.ndarray:
    with model.cache.sequence() as seq:
        return model.step([(seq, tokens)])


def test_steps_equal_one_pass(model):
    a, b = text(70), text(45, 2)
    with model.cache.sequence() as s, model.cache.sequence() as t:
        first = model.step([(s, a[:33]), (t, b[:44])])
        second = model.step([(t, b[44:]), (s, a[33:])])
    assert np.array_equal(np.concatenate([first[:33], second[1:]]), anew(model, a))
    assert np.array_equal(np.concatenate([first[33:], second[:1]]), anew(model, b))


def test_forks_aborts_and_speculation(model):
    prompt, wrong, right = text(40), text(6, 2), text(30, 3)
    with model.cache.sequence() as seq:
        model.step([(seq, prompt)])
        model.step([(seq, wrong)], abort=True)
        drafted = right[:3] + wrong
        rows = model.step([(seq, drafted)], keep=len(drafted), accepted=[3])[:3]
        with seq.fork() as child:
            model.step([(child, wrong)])
            rest = model.step([(seq, right[3:])])
            kept = anew(model, prompt + right)[len(prompt) :]
            assert np.array_equal(np.concatenate([rows, rest]), kept)
            more = model.step([(child, right)])
        assert np.array_equal(more, anew(model, prompt + right[:3] + wrong + right)[-30:])


def test_checkpoints_and_preemption(model):
    prompt, turns = text(50), [text(20, seed) for seed in (4, 5, 6)]
    with model.cache.sequence() as seq:
        model.step([(seq, prompt)])
        seq.checkpoint()
        model.step([(seq, turns[0])])
        with pytest.raises(pagedkv.PagedKVError):
            seq.truncate(len(prompt) + 1)
        base = seq.fork()  # what a scheduler keeps of a sequence that it preempts
        base.truncate(len(prompt))
        assert base.checkpoints() == [len(prompt)]
    for turn in turns:
        rows = model.step([(base, turn)])
        assert np.array_equal(rows, anew(model, prompt + turn)[len(prompt) :])
        base.truncate(len(prompt))
    base.drop_checkpoint(len(prompt))
    assert base.state() is not None
    base.close()


def prefill(model: Hybrid, seq, tokens: list[int]) -> np.ndarray:
    """The rest of a prompt, in steps that end where states are worth keeping."""
    rows = []
    while len(seq) < len(tokens):
        stop = seq.state_stop(len(tokens))
        rows.append(model.step([(seq, tokens[len(seq) : stop])]))
    return np.concatenate(rows)


def test_prefixes_and_preemption(model):
    """Whatever states others left, and wherever a sequence is taken off and started again."""
    known = 0
    served = Hybrid(prefix=1)
    system = text(90, 7)
    for turn in range(9):
        prompt = system[: 90 - 20 * (turn % 2)] + text(40, turn // 3)
        answer = text(24, 100 + turn)
        expected = anew(model, prompt + answer)
        with served.cache.sequence() as seq:
            seq.attach_prefix(prompt[:-1])
            found = len(seq)
            known += found
            rows = prefill(served, seq, prompt)
            assert np.array_equal(rows, expected[found : len(prompt)]), turn
            for token in answer[:10]:
                served.step([(seq, [token])])
        # Preempted: all it had is what the index kept.
        with served.cache.sequence() as seq:
            seq.attach_prefix((prompt + answer)[:-1])
            found = len(seq)
            assert found >= (len(prompt) - 1) // 16 * 16
            rows = prefill(served, seq, prompt + answer)
            assert np.array_equal(rows, expected[found:]), turn
            with seq.fork() as child:
                served.step([(child, answer)], abort=True)
                served.step([(child, answer[:4])], keep=4, accepted=[2])
            assert np.array_equal(
                served.step([(seq, answer)]), anew(model, prompt + 2 * answer)[-len(answer) :]
            )
        if turn % 4 == 3:
            served.cache.prefix.reclaim(1, 2)
        served.cache.verify()
    assert known > 4 * 64
    served.cache.close()
