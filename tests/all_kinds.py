"""Models with every kind of entry that a state dict can hold."""

import math

import torch
from torch import nn


class AllKinds(nn.Module):
    """BatchNorm, frozen and tied layers, a scalar, an empty tensor, and four types of numbers."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.frozen = nn.Linear(math.prod(input_shape), 8)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)  # float32 statistics, and a counter, int64 of no dimension
        self.hidden = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.hidden.weight  # tied
        self.head = nn.Linear(8, num_classes)
        self.twice = self.head  # one module under two names
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.narrow = nn.Parameter(torch.ones(8, dtype=torch.float16))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int32))
        self.register_buffer("mask", torch.tensor([True] * 7 + [False]))
        self.register_buffer("total", torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        x = self.norm(self.frozen(x.flatten(1)))
        if self.training:
            self.seen = self.seen + len(x)  # assigned
            self.total += torch.tensor([1.0, len(x)], dtype=torch.float64)  # changed in place
        x = x + torch.relu(self.again(torch.relu(self.hidden(x))))
        return self.head(x * self.narrow.float() * self.mask * self.scale) + self.empty.sum()


class OnlyTrained(nn.Module):
    """What methods that move models by gradients alone can take: no buffers, nothing frozen."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.hidden = nn.Linear(math.prod(input_shape), 8)
        self.head = nn.Linear(8, num_classes)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.narrow = nn.Parameter(torch.ones(8, dtype=torch.float16))
        self.empty = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x):
        x = torch.relu(self.hidden(x.flatten(1)))
        return self.head(x * self.narrow.float() * self.scale) + self.empty.sum()


class Tied(OnlyTrained):
    """The same with two layers that are one tensor."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = torch.relu(self.hidden(x.flatten(1)))
        x = x + torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x * self.narrow.float() * self.scale) + self.empty.sum()


class Normed(nn.Sequential):
    """A layer with BatchNorm, and nothing else that is special."""

    def __init__(self, input_shape, num_classes):
        hidden = nn.Linear(math.prod(input_shape), 16), nn.BatchNorm1d(16), nn.ReLU()
        super().__init__(nn.Flatten(), *hidden, nn.Linear(16, num_classes))


class AllFrozen(OnlyTrained):
    """Nothing to train."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.requires_grad_(False)


class AllHalf(OnlyTrained):
    """Float16 throughout, which takes no float32 inputs."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.half()


class Masked(OnlyTrained):
    """A constant of infinities among the buffers."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
