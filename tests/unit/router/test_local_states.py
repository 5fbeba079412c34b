from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref

import numpy as np
import pytest
import torch

from entropy_rft.difficulty import question_states
from entropy_rft.difficulty.states import fingerprint
from entropy_rft.router.features import FeatureError
from entropy_rft.router.local_states import LocalStates, forward_batches
from entropy_rft.router.tokenizing import ChatTokenizer
from entropy_rft.threads import CHOSEN_BY_USER


def always():
    return True


@pytest.fixture(scope="module")
def model(random_model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(random_model_dir)


def run(test, model_dir, **options):
    """``test(states)`` with started states."""

    async def main():
        states = LocalStates(str(model_dir), device="cpu", **options)
        await states.start()
        try:
            await test(states)
        finally:
            await states.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("threads", "of_the_user", "expected"),
    [(None, None, max(1, len(os.sched_getaffinity(0)) - 1)), (2, None, 2), (2, "3", 2), (None, "3", 3)],
)
def test_a_core_is_left_to_the_router(random_model_dir, threads, of_the_user, expected, monkeypatch):
    before = torch.get_num_threads()
    for name in CHOSEN_BY_USER:
        monkeypatch.delenv(name, raising=False)
    if of_the_user:
        monkeypatch.setenv("OMP_NUM_THREADS", of_the_user)
        torch.set_num_threads(int(of_the_user))  # as torch does when it loads
    found = []

    async def ask(states):
        found.append(await asyncio.get_running_loop().run_in_executor(states._thread, torch.get_num_threads))

    try:
        run(ask, random_model_dir, threads=threads)
    finally:
        torch.set_num_threads(before)
    assert found == [expected]


@pytest.mark.parametrize("layer", [-1, 2, 1, 0, -2])
def test_exact_in_batches_of_any_lengths(model, random_model_dir, layer):
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 256, length).tolist() for length in (1, 2, 3, 17, 40, 41, 90, 300, 5, 1)]
    forwards = []

    async def test(states):
        states._model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: forwards.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        found = await asyncio.gather(*(states.state(prompt, always) for prompt in prompts))
        expected = question_states(model, prompts, layer).numpy()
        assert np.abs(np.stack(found) - expected).max() < 1e-4
        assert found[0].dtype == np.float32

    run(test, random_model_dir, layer=layer, batch_size=16, batch_wait=0.01)
    assert sum(forwards) == len(prompts)
    assert max(forwards) > 1


def test_little_of_a_forward_is_padding():
    batch = [[0] * length for length in (9000, 10, 20, 9000, 30, 200)]
    order = sorted(range(len(batch)), key=lambda index: len(batch[index]))
    assert forward_batches(order, batch) == [[1, 2, 4], [5], [0], [3]]


def test_only_the_model_that_the_probe_was_made_for(model, random_model_dir, caplog):
    async def nothing(states):
        assert await states.ready()

    run(nothing, random_model_dir, fingerprint=fingerprint(model), width=16)
    with pytest.raises(ValueError, match=r"other weights than those of .*set force_probe"):
        run(nothing, random_model_dir, fingerprint="0" * 16)
    run(nothing, random_model_dir, fingerprint="0" * 16, force=True)
    assert "are unreliable" in caplog.text
    with pytest.raises(ValueError, match=r"reads the width 17, .* has 16"):
        run(nothing, random_model_dir, width=17)
    with pytest.raises(ValueError, match="layer must lie between"):
        run(nothing, random_model_dir, layer=3)
    with pytest.raises(ValueError, match="is not a directory"):
        run(nothing, "/no/such/place")


def test_questions_that_the_model_cannot_read(random_model_dir):
    async def test(states):
        for prompt, message in (
            ([], "no tokens"),
            ([100_000], "not in the model's vocabulary"),
            ([-1], "not in the model's vocabulary"),
        ):
            with pytest.raises(FeatureError, match=message):
                await states.state(prompt, always)
        with pytest.raises(FeatureError, match="513 tokens, the limit is 512"):
            await states.state([5] * 513, always)
        assert len(await states.state([5] * 512, always)) == 16

    run(test, random_model_dir)


def test_a_state_that_is_not_finite_is_that_of_its_question(random_model_dir):
    async def test(states):
        with torch.no_grad():
            states._model.get_input_embeddings().weight[7] = float("nan")
        found = await asyncio.gather(*(states.state([n, n], always) for n in (5, 7, 9)), return_exceptions=True)
        assert [isinstance(value, FeatureError) for value in found] == [False, True, False]

    run(test, random_model_dir, batch_wait=0.01)


def test_before_the_start_and_after_the_end(random_model_dir):
    async def main():
        states = LocalStates(str(random_model_dir), device="cpu")
        assert not await states.ready()
        with pytest.raises(FeatureError, match="not loaded"):
            await states.state([5], always)
        await states.start()
        await states.close()
        with pytest.raises(FeatureError, match="closed"):
            await asyncio.wait_for(states.state([5], always), 5)

    asyncio.run(main())


def test_a_dead_worker_is_an_error_and_no_hang(random_model_dir):
    async def test(states):
        states._thread.shutdown()
        with pytest.raises(FeatureError, match="worker of the features has ended"):
            await asyncio.wait_for(states.state([5], always), 5)

    run(test, random_model_dir)


def test_a_stuck_worker_is_an_error_and_no_hang(random_model_dir):
    release = threading.Event()

    async def test(states):
        states._thread.submit(release.wait, 30)
        with pytest.raises(FeatureError, match=r"longer than 0\.05 s"):
            await asyncio.wait_for(states.state([5], always), 5)
        assert not await states.ready()
        release.set()
        states._batcher.timeout = 30
        assert len(await states.state([5], always)) == 16
        assert await states.ready()

    run(test, random_model_dir, timeout=0.05)


def test_a_closed_source_lets_go_of_its_model(random_model_dir):
    """Also where all that was loaded is excluded from garbage collection."""
    found = []

    async def test(states):
        found.append(weakref.ref(states._model))
        gc.freeze()

    try:
        run(test, random_model_dir)
        gc.collect()
        assert found[0]() is None
    finally:
        gc.unfreeze()


def test_the_states_of_a_model_with_an_adapter(random_model_dir, model, tmp_path):
    import copy

    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    adapted.save_pretrained(tmp_path)
    expected = question_states(adapted, [[1, 2, 3]])[0]
    assert not np.allclose(expected, question_states(model, [[1, 2, 3]])[0], atol=1e-4)

    async def test(states):
        found = await states.state([1, 2, 3], always)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    run(test, tmp_path, fingerprint=fingerprint(adapted))
    assert len(ChatTokenizer.from_pretrained(str(tmp_path)).tokenizer) > 0  # its base model's
