"""A tiny transformer with random weights, written and read as anybody's."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch

from fl.clients import Sgd, TrainingApp
from fl.errors import ConfigError
from fl.models import HuggingFace, LoRA, build, merged

T, V = 8, 11


@pytest.fixture
def folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=T,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return str(tmp_path)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'fl-simulator\[huggingface\]'"):
        HuggingFace((T,), V, "nowhere")


def test_it_has_the_logits_of_the_model_in_the_folder(folder):
    import transformers

    own = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    x = torch.arange(2 * T).reshape(2, T) % V
    torch.testing.assert_close(HuggingFace((T,), V, folder).eval()(x), own(input_ids=x).logits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folder": "nowhere"}, "folder is 'nowhere'"),
        ({"task": "speech"}, "task is 'speech'"),
        ({"num_classes": V + 1}, f"vocab_size is {V}"),
        ({"input_shape": (T + 1,)}, f"max_position_embeddings is {T}"),
        ({"input_shape": (1, 8, 8)}, r"input_shape=\(1, 8, 8\)"),
    ],
)
def test_what_does_not_fit_is_refused(folder, change, said):
    given = {"input_shape": (T,), "num_classes": V, "folder": folder, "task": "causal"}
    with pytest.raises(ConfigError, match=said):
        HuggingFace(**{**given, **change})


def test_a_classifier_gets_a_head_for_the_classes_from_the_seed(folder):
    make = partial(HuggingFace, folder=folder, task="classification")
    one, same = (build(make, (T,), 3, seed=0) for _ in range(2))
    x = torch.zeros(2, T, dtype=torch.int64)
    assert one.eval()(x).shape == (2, 3)
    torch.testing.assert_close(same.eval()(x), one(x), rtol=0, atol=0)


def test_adapters_train_beside_it_tied_weights_and_all(folder, federated_tokens):
    make = partial(HuggingFace, folder=folder)
    adapter = LoRA(2, layers=["*.q_proj", "*.v_proj"])
    model = build(make, (T,), V, 0, adapter)
    app = TrainingApp(model, federated_tokens, Sgd(0.1))
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in app.layout.names} == {
        "q_proj",
        "v_proj",
    }
    x = torch.zeros(2, T, dtype=torch.int64)
    torch.testing.assert_close(merged(model).eval()(x), model.eval()(x))


@pytest.fixture
def federated_tokens():
    import numpy as np

    from fl.data import Examples, FederatedData, Partitions

    x = np.arange(4 * T).reshape(4, T) % V
    examples = Examples(x, np.roll(x, -1, axis=1))
    return FederatedData(
        name="tokens",
        train=examples,
        test=examples,
        partitions=Partitions.contiguous([2, 2]),
        num_classes=V,
        input_shape=(T,),
        task="next-token",
    )
