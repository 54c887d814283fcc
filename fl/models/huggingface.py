"""A transformer from a folder of Hugging Face's format, causal or for classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fl.errors import ConfigError
from fl.extras import imported

_HEADS = {"causal": "AutoModelForCausalLM", "classification": "AutoModelForSequenceClassification"}


class HuggingFace(nn.Module):
    """Logits of a model that `transformers` reads from a folder on this machine.

    Nothing is downloaded, and no code of the folder's is run. Its dropout trains as it is
    configured. The data's tokens must be those of the model: their numbers are given to it as they
    are. Weights of a head that the folder does not have are drawn from the run's seed.

    Args:
        input_shape: (T,), tokens of one window, T >= 1.
        num_classes: size of the data's vocabulary, or classes.
        folder: with config.json and model.safetensors.
        task: "causal" predicts the next token at every position, "classification" one class of a
            window.

    Raises:
        ConfigError: `transformers` is not installed; the folder has no such model, or one with
            fewer tokens or positions than the data; or inputs are not sequences of tokens.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        folder: str,
        task: Literal["causal", "classification"] = "causal",
    ) -> None:
        super().__init__()
        transformers = imported("model=huggingface", "transformers")
        if task not in _HEADS:
            raise ConfigError(f"task is {task!r}; it must be one of {', '.join(_HEADS)}")
        if len(input_shape) != 1:
            raise ConfigError(
                f"input_shape={input_shape}: HuggingFace needs (T,), the tokens of a window; use "
                "data=shakespeare, data=stdlib, or tokens of your own"
            )
        if not (Path(folder) / "config.json").is_file():
            raise ConfigError(
                f"folder is {folder!r}, which has no config.json: it must be a folder on this "
                "machine that save_pretrained has written"
            )
        transformers.utils.logging.disable_progress_bar()
        settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        if task == "classification":
            settings["num_labels"] = num_classes
        try:
            self.model = getattr(transformers, _HEADS[task]).from_pretrained(
                folder, use_safetensors=True, **settings
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            why = " ".join(str(error).split())
            raise ConfigError(f"folder is {folder!r}, and no {task} model: {why:.300}") from error
        self.model.config.use_cache = False
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = -1  # windows are full: the last token is the last
        self._check("vocab_size", num_classes if task == "causal" else 1, "classes of the data")
        self._check("max_position_embeddings", input_shape[0], "tokens of a window")

    def _check(self, name: str, least: int, what: str) -> None:
        size = getattr(self.model.config, name, None)
        if isinstance(size, int) and size < least:
            raise ConfigError(f"folder has a model whose {name} is {size}, of {least} {what}")

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits, (B, T, V) or of classes (B, C), of tokens, whole numbers, (B, T)."""
        logits: Tensor = self.model(input_ids=x.long()).logits
        return logits
