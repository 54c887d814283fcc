"""Architectures by name: what is ours with stand-ins, and the packages where they are installed."""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch
from many_cases import for_each
from safetensors.torch import load_file, save_file
from torch import nn

from fl.clients import Sgd, TrainingApp
from fl.data import Examples, FederatedData, Partitions
from fl.errors import ConfigError
from fl.models import build, timm, torchvision
from fl.models.probe import smallest_batch

SHAPE = (3, 8, 8)


class Small(nn.Module):
    """Has what such models have: a convolution, batch normalisation, a layer for the classes."""

    def __init__(self, channels, num_classes, width=4):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.stem(x)).relu().mean(dim=(2, 3)))


@pytest.fixture
def packages(monkeypatch):
    """Stands in for both packages with one architecture each."""
    vision, image = ModuleType("torchvision"), ModuleType("timm")
    models = ModuleType("torchvision.models")
    models.list_models = lambda module: ["small", "large"] if module is models else ["segments"]
    models.get_model = lambda name, weights, num_classes, **o: Small(3, num_classes, **o)
    image.list_models = lambda: ["small", "large"]
    image.create_model = lambda name, pretrained, num_classes, in_chans, **o: Small(
        in_chans, num_classes, **o
    )
    vision.models = models
    for package in (vision, models, image):
        monkeypatch.setitem(sys.modules, package.__name__, package)


both = pytest.mark.parametrize("model", [torchvision, timm])


@pytest.mark.parametrize("model", [torchvision, timm])
def test_without_the_package_it_says_what_to_install(model, monkeypatch):
    for name in ("torchvision", "torchvision.models", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'fl-simulator\[vision\]'"):
        model(SHAPE, 10, "resnet18")


@both
def test_packages_that_do_not_fit_each_other_are_named(model, monkeypatch, tmp_path):
    for name in ("torchvision", "timm"):
        (tmp_path / name).mkdir()
        broken = "raise RuntimeError('operator torchvision::nms does not exist')"
        (tmp_path / name / "__init__.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torchvision", "torchvision.models", "timm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match="built for another torch"):
        model(SHAPE, 10, "resnet18")


@both
@for_each(
    "change, said",
    [
        ({"name": "smal"}, "name is 'smal'.* small"),
        ({"name": "segments"}, "name is 'segments'"),
        ({"options": {"depth": 2}}, "options={'depth': 2}"),
        ({"options": {"weights": "DEFAULT"}}, "options has 'weights'"),
        ({"options": {"pretrained": True}}, "options has 'pretrained'"),
        ({"options": {"checkpoint_path": "a.pth"}}, "options has 'checkpoint_path'"),
        ({"input_shape": (60,)}, r"input_shape=\(60,\)"),
        ({"frozen": ["stam.*"]}, "frozen has 'stam.*'"),
        ({"frozen": ["*"]}, r"frozen is \['\*'\]"),
        ({"weights": "nowhere"}, "weights is 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_refused(packages, model, change, said):
    with pytest.raises(ConfigError, match=said):
        model(**{"input_shape": SHAPE, "num_classes": 10, "name": "small", **change})


def test_torchvision_takes_grey_images_as_three_equal_channels(packages):
    grey, colour = (build(partial(torchvision, name="small"), (c, 8, 8), 10, 0) for c in (1, 3))
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(grey.eval()(x), colour.eval()(x.repeat(1, 3, 1, 1)))
    with pytest.raises(ConfigError, match=r"input_shape=\(2, 8, 8\)"):
        torchvision((2, 8, 8), 10, "small")
    assert build(partial(timm, name="small"), (2, 8, 8), 10, 0)(torch.zeros(2, 2, 8, 8)).shape == (
        2,
        10,
    )


@both
def test_a_file_gives_all_but_what_another_number_of_classes_asks_for(packages, model, tmp_path):
    theirs, path = Small(3, 7), str(tmp_path / "theirs.safetensors")
    save_file(theirs.state_dict(), path)
    make = partial(model, name="small", weights=path)
    same, other = (build(make, SHAPE, classes, seed=0).state_dict() for classes in (7, 10))
    fresh = build(partial(model, name="small"), SHAPE, 10, seed=0).state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(same[name], value)
        drawn = name.startswith("head.")
        assert torch.equal(other[name], fresh[name] if drawn else value)
    save_file({**theirs.state_dict(), "more": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="more"):
        model(SHAPE, 7, "small", weights=path)
    save_file(Small(3, 7, width=5).state_dict(), path)
    with pytest.raises(ConfigError, match=r"has shape .*5"):
        model(SHAPE, 7, "small", weights=path)


def test_an_architecture_for_images_of_another_size_is_refused_with_the_option(packages):
    torchvision_models, package = sys.modules["torchvision.models"], sys.modules["timm"]

    def sized(made, of, **sizes):
        for name, size in sizes.items():
            setattr(of, name, size)
        return made

    def of_vision(name, image_size=16, **given):
        return sized(made := Small(3, given["num_classes"]), made, image_size=image_size)

    def of_timm(name, img_size=(16, 16), **given):
        made = Small(given["in_chans"], given["num_classes"])
        made.patch_embed = nn.Identity()
        size = tuple(img_size)
        return sized(made, made.patch_embed, img_size=size, strict_img_size=True)

    torchvision_models.get_model, package.create_model = of_vision, of_timm
    with pytest.raises(ConfigError, match=r"options=\{image_size: 8\}"):
        torchvision(SHAPE, 10, "small")
    with pytest.raises(ConfigError, match=r"options=\{img_size: 8\}"):
        timm(SHAPE, 10, "small")
    assert torchvision(SHAPE, 10, "small", {"image_size": 8}).image_size == 8
    assert timm(SHAPE, 10, "small", {"img_size": [8, 8]}).patch_embed.img_size == (8, 8)


def images(shape=SHAPE, n=12):
    rng = np.random.default_rng(0)
    examples = Examples(
        rng.normal(size=(n, *shape)).astype(np.float32), np.arange(n, dtype=np.int64) % 3
    )
    return FederatedData(
        name="noise",
        train=examples,
        test=examples,
        partitions=Partitions.contiguous([n // 2, n // 2]),
        num_classes=3,
        input_shape=shape,
    )


@both
def test_what_is_frozen_neither_trains_nor_travels(packages, model):
    make = partial(model, name="small", frozen=["stem.*"])
    app = TrainingApp(partial(build, make, SHAPE, 3, 0)(), images(), Sgd(0.1))
    assert not [name for name in app.layout.names if name.startswith("stem.")]
    assert {"norm.weight", "head.weight"} <= {*app.layout.names}


REAL = [
    ("torchvision", "resnet18", {}),
    ("torchvision", "mobilenet_v3_small", {}),
    ("torchvision", "squeezenet1_1", {}),
    ("torchvision", "inception_v3", {}),
    ("torchvision", "shufflenet_v2_x0_5", {}),
    ("timm", "test_resnet", {}),
    ("timm", "test_vit", {"img_size": 96}),
    ("timm", "test_efficientnet", {}),
    ("timm", "deit_tiny_distilled_patch16_224", {"img_size": 96, "depth": 1}),
]


@pytest.mark.parametrize(("package", "name", "options"), REAL)
def test_the_packages_own_architectures_are_had_and_read_their_own_files(
    package, name, options, tmp_path
):
    try:
        pytest.importorskip(package)
    except RuntimeError as error:  # its kernels are for another torch
        pytest.skip(str(error))
    make = partial({"torchvision": torchvision, "timm": timm}[package], name=name, options=options)
    try:
        model = build(make, (1, 96, 96), 7, seed=0)
    except ConfigError as error:
        if name in str(error) and "no such architecture" in str(error):
            pytest.skip(f"this {package} has no {name}")
        raise
    assert smallest_batch(model, (1, 96, 96), 7, tokens=False) <= 2
    path = str(tmp_path / "model.safetensors")
    save_file(model.state_dict(), path)
    again = build(partial(make, weights=path), (1, 96, 96), 5, seed=1)
    drawn = [k for k, v in again.state_dict().items() if v.shape != load_file(path)[k].shape]
    assert drawn
    assert all(again.state_dict()[k].shape[0] == 5 for k in drawn)
