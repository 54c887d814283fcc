"""Compressors with true bytes: encoders, error control around them, chains.

A compressor turns a flat float32 vector into a payload of real bytes and back; nothing is pickled,
and the payload's length is what a link is charged. `Channel` is the interface; see `compressor`.

| method | class | paper |
|---|---|---|
| none | `Identity` | |
| top-k, of all or by tensor; by block | `TopK`, `BlockTopK` | arXiv:1704.05021 |
| above a threshold | `Threshold` | |
| rand-k, unscaled or unbiased | `RandK` | arXiv:1809.07599 |
| QSGD | `Qsgd` | arXiv:1610.02132 |
| uniform integers | `UniformQuantizer` | |
| natural compression | `Natural` | arXiv:1905.10988 |
| TernGrad | `TernGrad` | arXiv:1705.07878 |
| Grass, rows of matrices | `Grass` | arXiv:2406.17660 |
| signSGD, scaled sign | `Sign`, `majority` | arXiv:1802.04434, arXiv:1901.09847 |
| codebook int8 | `Codebook` | arXiv:2412.01152 |
| fp16, bf16, fp8, E3M0 | `Cast` | arXiv:2209.05433, arXiv:2501.18512 |
| PowerSGD | `PowerSgd` | arXiv:1905.13727 |
| DeMo | `Demo` under `ErrorFeedback` | arXiv:2411.19870 |
| count sketch, FetchSGD | `CountSketch`, `FetchSgd` | arXiv:2007.07682 |
| one byte per direction | `OneByteSpsa` | arXiv:2306.10015 |
| 1-bit Adam | `OneBitAdam` | arXiv:2102.02888 |
| DeMo and Just One Byte as optimisers | `DecoupledMomentum`, `JustOneByte` | as above |
| chains; shrunk; induced | `Chain`, `Shrunk`, `Induced` | arXiv:2006.11077 |
| EF, EF21 | `ErrorFeedback`, `EF21` | arXiv:1901.09847, arXiv:2106.05203 |
| EF21-SGDM, EControl | `EF21Sgdm`, `EControl` | arXiv:2305.15155, arXiv:2311.05645 |
| DIANA, MARINA | `Diana`, `Marina` | arXiv:1901.09269, arXiv:2102.07845 |

MicroAdam (arXiv:2405.15593) compresses a client's own optimiser state and sends nothing: it is a
client rule, `fl.clients.MicroAdam`.

How a Flower app uses a channel
===============================

What travels is x = w_local - w_received up, and x = w_{t+1} - w_t down, on the model's row
(`Shapes.of(layout)` with the layout of `fl.vectors`); entries that are carried travel as they are.

Uplink, client side, a ClientApp mod around the app's own function:

1. Call the app; x = its model minus the model that came.
2. state = `channel.init(shapes)` the first time; afterwards the arrays of an ArrayRecord in
   `context.state`, which outlives the message on a SuperNode as on the simulator. A `State` is a
   flat dictionary of plain NumPy arrays (float32, float64, int64) for that purpose.
3. If the message tells the number that the server expects, `state = channel.resume(state, shapes,
   expected)`: a lost message or a lost memory makes the sender start over.
4. `payload, state = channel.encode(x, shapes, state, rng)` with rng = `generator(seed,
   "compression", client, message_id)`. Give all clients of a round equal generators (leave the
   client out) where a method shares its randomness: `RandK` for linear sums.
5. The reply carries the payload as one array of bytes in place of the model; state goes back.

Uplink, server side, a wrapper around any strategy:

1. `Receivers(channel, shapes, clients, max_bytes)` holds the states of all clients, and refuses to
   be built where they exceed the bound. `check_participants` before a round refuses partial
   participation for methods that cannot work with it.
2. For each reply, `x = receivers.receive(client, payload)`; w_received + x replaces the payload,
   and the strategy sees an ordinary reply. `PayloadError` means a hostile or damaged payload:
   record a fault, hand the strategy an error reply, keep the state.
3. `receivers.next_message(client)` goes into the client's next message (step 3 above) if its last
   one did not arrive.

Downlink: `Broadcast` on the server, `receive_parts` on the clients. The vector is the model itself;
a rounding compressor sends it as it is, EF21 what changed since the model that the clients hold.

`fl.clients.Uplink`, `fl.clients.Downlink` and `fl.strategies.Exchange` are all of this.

| participation | methods |
|---|---|
| any | all compressors; ErrorFeedback (an absent client's residual waits, and ages) |
| tracked: the server keeps h of each client | EF21, EF21-SGDM, EControl, DIANA |
| full: all clients in all rounds, or ConfigError | MARINA, 1-bit Adam, PowerSGD in two steps |

The names below are loaded when first used: a run needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.compression.block_topk import BlockTopK
    from fl.compression.broadcast import Broadcast, check_broadcast, receive_parts
    from fl.compression.cast import Cast
    from fl.compression.chain import Chain, chained
    from fl.compression.codebook import Codebook
    from fl.compression.compressed_mean import CompressesMean, MeanLink, mean_compressor
    from fl.compression.compressor import (
        Channel,
        Compressor,
        Length,
        Participation,
        Shapes,
        State,
        Transform,
        Vector,
    )
    from fl.compression.count_sketch import CountSketch, FetchSgd
    from fl.compression.decoupled_momentum import DecoupledMomentum
    from fl.compression.demo import Demo
    from fl.compression.diana import Diana
    from fl.compression.econtrol import EControl
    from fl.compression.ef21 import EF21
    from fl.compression.ef21_sgdm import EF21Sgdm
    from fl.compression.error_feedback import ErrorFeedback
    from fl.compression.grass import Grass
    from fl.compression.identity import Identity
    from fl.compression.induced import Induced
    from fl.compression.just_one_byte import JustOneByte
    from fl.compression.marina import Marina
    from fl.compression.natural import Natural
    from fl.compression.onebit_adam import OneBitAdam
    from fl.compression.powersgd import PowerSgd
    from fl.compression.qsgd import Qsgd
    from fl.compression.randk import RandK
    from fl.compression.receivers import Receivers
    from fl.compression.replicated import Replicated
    from fl.compression.shrunk import Shrunk
    from fl.compression.sign import Sign, majority
    from fl.compression.spsa import OneByteSpsa
    from fl.compression.terngrad import TernGrad
    from fl.compression.threshold import Threshold
    from fl.compression.topk import TopK
    from fl.compression.uniform import UniformQuantizer
    from fl.compression.wire import PayloadError

__getattr__ = lazily(
    __name__,
    {
        "BlockTopK": "fl.compression.block_topk",
        "Broadcast": "fl.compression.broadcast",
        "Cast": "fl.compression.cast",
        "Chain": "fl.compression.chain",
        "Channel": "fl.compression.compressor",
        "Codebook": "fl.compression.codebook",
        "CompressesMean": "fl.compression.compressed_mean",
        "Compressor": "fl.compression.compressor",
        "CountSketch": "fl.compression.count_sketch",
        "DecoupledMomentum": "fl.compression.decoupled_momentum",
        "Demo": "fl.compression.demo",
        "Diana": "fl.compression.diana",
        "EControl": "fl.compression.econtrol",
        "EF21": "fl.compression.ef21",
        "EF21Sgdm": "fl.compression.ef21_sgdm",
        "ErrorFeedback": "fl.compression.error_feedback",
        "FetchSgd": "fl.compression.count_sketch",
        "Grass": "fl.compression.grass",
        "Identity": "fl.compression.identity",
        "Induced": "fl.compression.induced",
        "JustOneByte": "fl.compression.just_one_byte",
        "Length": "fl.compression.compressor",
        "Marina": "fl.compression.marina",
        "MeanLink": "fl.compression.compressed_mean",
        "Natural": "fl.compression.natural",
        "OneBitAdam": "fl.compression.onebit_adam",
        "OneByteSpsa": "fl.compression.spsa",
        "Participation": "fl.compression.compressor",
        "PayloadError": "fl.compression.wire",
        "PowerSgd": "fl.compression.powersgd",
        "Qsgd": "fl.compression.qsgd",
        "RandK": "fl.compression.randk",
        "Receivers": "fl.compression.receivers",
        "Replicated": "fl.compression.replicated",
        "Shapes": "fl.compression.compressor",
        "Shrunk": "fl.compression.shrunk",
        "Sign": "fl.compression.sign",
        "State": "fl.compression.compressor",
        "TernGrad": "fl.compression.terngrad",
        "Threshold": "fl.compression.threshold",
        "TopK": "fl.compression.topk",
        "Transform": "fl.compression.compressor",
        "UniformQuantizer": "fl.compression.uniform",
        "Vector": "fl.compression.compressor",
        "chained": "fl.compression.chain",
        "check_broadcast": "fl.compression.broadcast",
        "majority": "fl.compression.sign",
        "mean_compressor": "fl.compression.compressed_mean",
        "receive_parts": "fl.compression.broadcast",
    },
)

__all__ = [
    "EF21",
    "BlockTopK",
    "Broadcast",
    "Cast",
    "Chain",
    "Channel",
    "Codebook",
    "CompressesMean",
    "Compressor",
    "CountSketch",
    "DecoupledMomentum",
    "Demo",
    "Diana",
    "EControl",
    "EF21Sgdm",
    "ErrorFeedback",
    "FetchSgd",
    "Grass",
    "Identity",
    "Induced",
    "JustOneByte",
    "Length",
    "Marina",
    "MeanLink",
    "Natural",
    "OneBitAdam",
    "OneByteSpsa",
    "Participation",
    "PayloadError",
    "PowerSgd",
    "Qsgd",
    "RandK",
    "Receivers",
    "Replicated",
    "Shapes",
    "Shrunk",
    "Sign",
    "State",
    "TernGrad",
    "Threshold",
    "TopK",
    "Transform",
    "UniformQuantizer",
    "Vector",
    "chained",
    "check_broadcast",
    "majority",
    "mean_compressor",
    "receive_parts",
]
