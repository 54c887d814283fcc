"""Architectures by name, of the packages torchvision and timm.

A model is the package's own module: its entries have the package's names, so that a run's
model.safetensors is read by the package, and the other way round. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fl.errors import ConfigError
from fl.extras import imported

_COLOURS = 3
# They would download, or read a file in which there may be code.
_NO_OPTIONS = frozenset(
    {"weights", "weights_backbone", "num_classes", "in_chans", "checkpoint_path", "cache_dir"}
)
_MOST_NAMED = 3


def torchvision(
    input_shape: tuple[int, ...],
    num_classes: int,
    name: str,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    frozen: Sequence[str] = (),
) -> nn.Module:
    """Returns a classifier of `torchvision.models`, which maps (B, 3, H, W) to (B, num_classes).

    Grey images are given to it as three equal channels. Outputs beside the classes (auxiliary
    classifiers) are left out.

    Args:
        input_shape: (C, H, W), C being 1 or 3.
        num_classes: outputs of the last layer.
        name: of the architecture, as "resnet18".
        options: further arguments of the architecture, as {"image_size": 32} of a "vit_b_16".
        weights: safetensors file with a state dict of this architecture to begin with; what it
            has of another number of classes, as a last layer, is drawn. None draws everything.
            Every client reads it where the model is made.
        frozen: names of parameters that are not trained, in which * stands for any text.

    Raises:
        ConfigError: torchvision is not installed or is built for another torch; no such
            architecture; it does not take such inputs or options; the file holds another model; or
            a name of `frozen` fits no parameter, or they fit all.
    """
    package = _imported("torchvision").models
    _check_images("torchvision", input_shape, channels=(1, _COLOURS))
    _check_name("torchvision", name, package.list_models(module=package))
    _check_options(options)
    given: dict[str, Any] = {**(options or {}), "weights": None, "num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        given = {"aux_logits": False, "init_weights": True, **given}
    made = _made("torchvision", name, options, lambda: package.get_model(name, **given))
    _check_size("image_size", getattr(made, "image_size", None), input_shape)
    if input_shape[0] == 1:
        made.register_forward_pre_hook(_as_colours)
    return _started(made, name, num_classes, weights, frozen)


def timm(
    input_shape: tuple[int, ...],
    num_classes: int,
    name: str,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    frozen: Sequence[str] = (),
) -> nn.Module:
    """Returns a classifier of `timm`, which maps (B, C, H, W) to (B, num_classes).

    Args:
        input_shape: (C, H, W), with any C.
        num_classes: outputs of the last layer.
        name: of the architecture, as "convnext_atto".
        options: further arguments of the architecture, as {"img_size": 32, "patch_size": 4} of a
            "vit_tiny_patch16_224".
        weights: as of `torchvision`.
        frozen: likewise.

    Raises:
        ConfigError: as `torchvision`.
    """
    package = _imported("timm")
    _check_images("timm", input_shape, channels=None)
    _check_name("timm", name, package.list_models())
    _check_options(options)
    given = {**(options or {}), "num_classes": num_classes, "in_chans": input_shape[0]}
    made = _made(
        "timm", name, options, lambda: package.create_model(name, pretrained=False, **given)
    )
    patches = getattr(made, "patch_embed", None)
    if getattr(patches, "strict_img_size", False):
        _check_size("img_size", getattr(patches, "img_size", None), input_shape)
    return _started(made, name, num_classes, weights, frozen)


def _imported(member: str) -> Any:
    try:
        return imported(f"model={member}", member)
    except ConfigError as error:
        if not isinstance(error.__cause__, RuntimeError):  # of kernels for another torch
            raise
        raise ConfigError(
            f"model={member}: the installed torchvision is built for another torch than the one "
            f"that is installed ({error.__cause__}): install both from the same place"
        ) from error


def _check_images(
    member: str, input_shape: tuple[int, ...], channels: tuple[int, ...] | None
) -> None:
    if len(input_shape) != 3:
        raise ConfigError(
            f"input_shape={input_shape}: model={member} needs (C, H, W), images; use model=mlp, or "
            "data of images, as data=image_folder"
        )
    if channels is not None and input_shape[0] not in channels:
        raise ConfigError(
            f"input_shape={input_shape}: model={member} takes images of 1 or 3 channels; "
            "model=timm takes any number"
        )


def _check_name(member: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = get_close_matches(str(name), names)
        raise ConfigError(
            f"name is {name!r}, and {member} has no such architecture among its {len(names)}"
            + (f"; similar are {', '.join(near)}" if near else f", as {names[0]}")
        )


def _check_options(options: Mapping[str, Any] | None) -> None:
    for key in options or {}:
        if key in _NO_OPTIONS or key.startswith("pretrained"):
            raise ConfigError(
                f"options has {key!r}, which is none of the architecture: what to begin with is "
                "weights, a file, and classes and channels are the data's"
            )


def _made(
    member: str,
    name: str,
    options: Mapping[str, Any] | None,
    make: Callable[[], nn.Module],
) -> nn.Module:
    try:
        return make()
    except Exception as error:  # whatever somebody's constructor raises
        raise ConfigError(
            f"model={member} name={name} options={dict(options or {})}: the architecture is not "
            f"made with these: {type(error).__name__}: {' '.join(str(error).split()):.300}"
        ) from error


def _check_size(option: str, size: Any, input_shape: tuple[int, ...]) -> None:
    wanted = input_shape[1:]
    if size is not None and (size if isinstance(size, tuple) else (size, size)) != wanted:
        value = wanted[0] if wanted[0] == wanted[1] else f"[{wanted[0]},{wanted[1]}]"
        raise ConfigError(
            f"options has no {option} for images of {wanted[0]}x{wanted[1]} pixels, and the "
            f"architecture is made for {size}: set options={{{option}: {value}}}"
        )


def _as_colours(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (x,) = inputs
    return (x.expand(*x.shape[:-3], _COLOURS, *x.shape[-2:]),)


def _started(
    model: nn.Module, name: str, num_classes: int, weights: str | None, frozen: Sequence[str]
) -> nn.Module:
    if weights is not None:
        _load(model, name, weights, num_classes)
    named = dict(model.named_parameters())
    for pattern in frozen:
        fitting = [each for each in named if fnmatchcase(each, pattern)]
        if not fitting:
            raise ConfigError(
                f"frozen has {pattern!r}, which fits no parameter of {name}; there are "
                f"{', '.join([*named][:_MOST_NAMED])} and {len(named) - _MOST_NAMED} more"
            )
        for each in fitting:
            named[each].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ConfigError(f"frozen is {[*frozen]}, which leaves no parameter of {name} to train")
    return model


def _load(model: nn.Module, name: str, weights: str, num_classes: int) -> None:
    try:
        found = load_file(weights)
    except (OSError, SafetensorError, TypeError) as error:
        raise ConfigError(
            f"weights is {weights!r}, and no safetensors file that can be read: {error}; write one "
            "with safetensors.torch.save_file(model.state_dict(), path)"
        ) from error
    own = model.state_dict()
    missing = [each for each in own if each not in found]
    if missing or any(each not in own for each in found):
        odd = missing or [each for each in found if each not in own]
        raise ConfigError(
            f"weights is {weights!r}, which {'lacks' if missing else 'has'} "
            f"{', '.join(odd[:_MOST_NAMED])}: it must have the entries of {name}"
        )
    kept, theirs = {}, set()
    for each, value in found.items():
        shape, wanted = tuple(value.shape), tuple(own[each].shape)
        if shape == wanted:
            kept[each] = value
            continue
        theirs.add(shape[:1])
        if not shape or shape[1:] != wanted[1:] or wanted[0] != num_classes or len(theirs) > 1:
            raise ConfigError(
                f"weights is {weights!r}, where {each} has shape {shape}; of {name} it has {wanted}"
            )
    model.load_state_dict({**own, **kept})
