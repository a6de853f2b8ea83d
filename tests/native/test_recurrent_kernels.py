"""Recurrent layers over pages: equal to torch's modules, and the same bits in any schedule."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from handle_results import result
from nextword import native
from nextword.engine import Engine, LogitsRequest, Request, SamplingParams, ScoreRequest, StopConfig
from nextword.engine.request import AnyRequest
from nextword.models import Recurrent, build
from nextword.models.backend import TorchBackend
from nextword.native.decode import Placement
from nextword.native.recurrent import RecurrentProgram, RecurrentWeights
from nextword.spec import ModelSpec

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built"),
    pytest.mark.usefixtures("kernels_restored"),
]

MODULES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
LENGTHS = (45, 20, 8, 1)
Step = list[tuple[int, int, int]]  # sequence, first position, end of the tokens that one call takes


def module_of(kind: str, width: int, layers: int, bias: bool = True) -> nn.RNNBase:
    torch.manual_seed(width + layers)
    module: nn.RNNBase = MODULES[kind](width, width, layers, bias=bias, batch_first=True)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=width**-0.5)
    return module.requires_grad_(False)


def program_of(kind: str, module: nn.RNNBase) -> RecurrentProgram:
    return RecurrentProgram(kind, module.hidden_size, [RecurrentWeights(*w) for w in module.all_weights])


def inputs_of(width: int, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    return [torch.randn(length, width, generator=torch.Generator().manual_seed(length)) for length in lengths]


@dataclass
class Pages:
    """The states of all sequences, in pages whose numbers are shuffled; what nobody wrote is NaN."""

    program: RecurrentProgram
    page_size: int
    seed: int = 0
    count: int = 200

    def __post_init__(self) -> None:
        shape = (len(self.program.layers), self.count, self.program.width)
        self.states = [torch.full(shape, torch.nan) for _ in range(1 + (self.program.kind == "lstm"))]
        self.free = random.Random(self.seed).sample(range(self.count), self.count)
        self.tables = [[self.free.pop() for _ in range(-(-length // self.page_size))] for length in LENGTHS]

    def run(self, inputs: list[Tensor], steps: list[Step]) -> list[Tensor]:
        """What every token gets, a tensor for each sequence."""
        outputs = [torch.full_like(x, torch.nan) for x in inputs]
        for step in steps:
            tables = np.full((len(step), max(map(len, self.tables))), -1, np.int32)
            for row, (sequence, _, _) in enumerate(step):
                tables[row, : len(self.tables[sequence])] = self.tables[sequence]
            positions = np.concatenate([np.arange(first, end) for _, first, end in step])
            sequences = np.repeat(np.arange(len(step)), [end - first for _, first, end in step])
            x = torch.cat([inputs[sequence][first:end] for sequence, first, end in step])
            y = self.program.forward(x, self.states, self.page_size, Placement(positions, sequences, tables))
            for row, (sequence, first, end) in enumerate(step):
                outputs[sequence][first:end] = y[torch.from_numpy(sequences) == row]
        return outputs

    def state(self, sequence: int, page: int) -> list[Tensor]:
        """(layers, width) each, after the last token written to the page."""
        return [state[:, self.tables[sequence][page]] for state in self.states]


ALONE: list[Step] = [[(sequence, 0, length)] for sequence, length in enumerate(LENGTHS)]
TOGETHER: list[Step] = [[(sequence, 0, length) for sequence, length in enumerate(LENGTHS)]]


def random_steps(seed: int) -> list[Step]:
    """Every sequence cut into chunks, which meet others by chance and in any order."""
    rng = random.Random(seed)
    done, steps = [0] * len(LENGTHS), []
    while any(at < length for at, length in zip(done, LENGTHS, strict=True)):
        step = []
        for sequence in rng.sample(range(len(LENGTHS)), len(LENGTHS)):
            left = LENGTHS[sequence] - done[sequence]
            if left and rng.random() < 0.6:
                end = done[sequence] + min(left, rng.choice([1, 1, 3, 8, 16, 40]))
                step.append((sequence, done[sequence], end))
                done[sequence] = end
        if step:
            steps.append(step)
    return steps


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(("width", "layers", "bias"), [(1, 2, True), (13, 1, True), (50, 3, True), (64, 2, False)])
def test_outputs_and_states_equal_torchs(instructions: str, kind: str, width: int, layers: int, bias: bool) -> None:
    module, inputs = module_of(kind, width, layers, bias), inputs_of(width)
    pages = Pages(program_of(kind, module), page_size=8)
    outputs = pages.run(inputs, TOGETHER)
    exact = copy.deepcopy(module).double()
    for sequence, (x, y) in enumerate(zip(inputs, outputs, strict=True)):
        expected, _ = exact(x.double()[None])
        assert torch.allclose(y.double(), expected[0], rtol=0, atol=1e-5)
        for page in range(len(pages.tables[sequence])):
            _, carried = exact(x[: 8 * (page + 1)].double()[None])
            for state, wanted in zip(
                pages.state(sequence, page), carried if kind == "lstm" else (carried,), strict=True
            ):
                assert torch.allclose(state.double(), wanted[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("width", [13, 64, 150])
def test_a_token_gets_the_same_bits_in_any_schedule(instructions: str, kind: str, width: int) -> None:
    program, inputs = program_of(kind, module_of(kind, width, 2)), inputs_of(width)
    native.set_threads(1)
    whole = Pages(program, 64).run(inputs, ALONE)
    assert all(y.isfinite().all() for y in whole)
    one_by_one: list[Step] = [
        [(sequence, at, at + 1) for sequence, length in enumerate(LENGTHS) if at < length] for at in range(max(LENGTHS))
    ]
    schedules = [TOGETHER, TOGETHER, one_by_one, *map(random_steps, range(5))]
    for seed, steps in enumerate(schedules):
        native.set_threads(1 + seed % 2)
        for got, wanted in zip(Pages(program, (8, 1, 5)[seed % 3], seed).run(inputs, steps), whole, strict=True):
            assert torch.equal(got, wanted)


def test_many_sequences_over_several_threads_get_the_bits_of_one() -> None:
    """Enough units for the gates, too, to be shared out, at borders that fall anywhere in a row."""
    width, sequences = 333, 70
    program = program_of("lstm", module_of("lstm", width, 1))
    x = torch.randn(sequences, width, generator=torch.Generator().manual_seed(0))
    tables, states = np.arange(sequences, dtype=np.int32)[:, None], [torch.empty(1, sequences, width) for _ in range(2)]
    every = Placement(np.zeros(sequences, np.int64), np.arange(sequences), tables)
    native.set_threads(2)
    together = program.forward(x, states, 8, every)
    native.set_threads(1)
    zero = np.zeros(1, np.int64)
    for row in range(sequences):
        alone = program.forward(x[row : row + 1], states, 8, Placement(zero, zero, tables[row : row + 1]))
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("kind", MODULES)
def test_gates_are_exact_near_zero_and_saturate_where_exp_would_overflow(instructions: str, kind: str) -> None:
    sizes = torch.tensor([1e-6, 1e-3, 0.1, 0.62, 0.63, 1.0, 5.0, 30.0, 90.0, 1e4, 1e30])
    x = torch.cat((sizes, -sizes))[:, None]
    module = module_of(kind, 1, 1)
    for name, parameter in module.named_parameters():
        nn.init.constant_(parameter, float(name == "weight_ih_l0"))
    rows = np.arange(len(x))
    placement = Placement(np.zeros(len(x), np.int64), rows, rows[:, None].astype(np.int32))
    states = [torch.empty(1, len(x), 1) for _ in range(1 + (kind == "lstm"))]
    y = program_of(kind, module).forward(x, states, 8, placement)
    expected, _ = copy.deepcopy(module).double()(x.double()[:, None])
    atol = 2e-7 if kind == "gru" else 1e-37  # a GRU, torch's as well, subtracts candidates from candidates
    assert torch.allclose(y.double(), expected[:, 0], rtol=1e-6, atol=atol)


def test_a_nan_stays_in_its_own_sequence_and_behind_itself(instructions: str) -> None:
    program, inputs = program_of("gru", module_of("gru", 20, 2)), inputs_of(20)
    clean = Pages(program, 8).run(inputs, TOGETHER)
    inputs[0][30, 3] = torch.nan
    spoilt = Pages(program, 8).run(inputs, TOGETHER)
    assert torch.equal(spoilt[0][:30], clean[0][:30])
    assert spoilt[0][30:].isnan().all()
    assert all(torch.equal(a, b) for a, b in zip(spoilt[1:], clean[1:], strict=True))


def test_a_copied_program_reads_the_copied_weights() -> None:
    module, inputs = module_of("lstm", 20, 1), inputs_of(20)
    program = program_of("lstm", module)
    expected = Pages(program, 8).run(inputs, TOGETHER)
    other = copy.deepcopy(program)
    for parameter in module.parameters():
        parameter.zero_()
    assert all(torch.equal(*pair) for pair in zip(Pages(other, 8).run(inputs, TOGETHER), expected, strict=True))
    assert not torch.equal(Pages(program, 8).run(inputs, TOGETHER)[0], expected[0])


GOOD = Placement(np.array([7, 8, 9]), np.zeros(3, np.int64), np.array([[0, 1]], np.int32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.array([-1, 0, 1])}, "position outside"),
        ({"positions": np.array([14, 15, 16])}, "position outside"),
        ({"positions": np.array([7, 8, 9], np.int32)}, "int64"),
        ({"positions": np.array([7, 8])}, "2 tokens"),
        ({"positions": np.array([7, 9, 8])}, "consecutive"),
        ({"sequences": np.array([0, 0])}, "sequence numbers"),
        ({"sequences": np.array([0, 0, 1])}, "sequence number outside"),
        ({"sequences": np.array([-1, -1, -1])}, "sequence number outside"),
        ({"sequences": np.array([0, 1, 0]), "page_tables": np.array([[0, 1], [2, 1]], np.int32)}, "next to each other"),
        ({"page_tables": np.array([[-1, 1]], np.int32)}, "page outside"),
        ({"page_tables": np.array([[0, 3]], np.int32)}, "page outside"),
        ({"page_tables": np.array([[0, -1]], np.int32)}, "page outside"),
        ({"page_tables": np.array([[0, 1]])}, "int32"),
        ({"page_tables": np.zeros((0, 2), np.int32)}, "sequence number outside"),
    ],
)
def test_a_placement_that_does_not_fit_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    program, states = program_of("rnn", module_of("rnn", 5, 1)), [torch.zeros(1, 3, 5)]
    program.forward(torch.zeros(3, 5), states, 8, GOOD)
    with pytest.raises(ValueError, match=message):
        program.forward(torch.zeros(3, 5), states, 8, replace(GOOD, **change))


def test_a_page_before_the_first_token_must_be_there() -> None:
    program, states = program_of("rnn", module_of("rnn", 5, 1)), [torch.zeros(1, 3, 5)]
    at_a_border = Placement(np.array([8]), np.zeros(1, np.int64), np.array([[-1, 1]], np.int32))
    with pytest.raises(ValueError, match="page outside"):
        program.forward(torch.zeros(1, 5), states, 8, at_a_border)


def test_shapes_that_do_not_fit_are_refused() -> None:
    module = module_of("lstm", 5, 2)
    program, states = program_of("lstm", module), [torch.zeros(2, 3, 5) for _ in range(2)]
    for x in (torch.zeros(2, 5), torch.zeros(3, 4), torch.zeros(3, 5, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"fit|takes"):
            program.forward(x, states, 8, GOOD)
    for wrong in (states[:1], [states[0], torch.zeros(2, 4, 5)], [torch.zeros(1, 3, 5) for _ in range(2)]):
        with pytest.raises(ValueError, match=r"states|takes"):
            program.forward(torch.zeros(3, 5), wrong, 8, GOOD)
    with pytest.raises(ValueError, match="takes"):
        RecurrentProgram("lstm", 6, program.layers)
    with pytest.raises(ValueError, match="takes"):
        RecurrentProgram("lstm", 5, [replace(program.layers[0], hidden_bias=torch.zeros(5))])


# ---- through the engine


class Tokenizer:
    stop_ids = frozenset({0})

    def stream(self) -> Tokenizer:
        return self

    def push(self, token: int) -> str:
        return chr(97 + token)

    def flush(self) -> str:
        return ""

    def token_text(self, token: int) -> str:
        return chr(97 + token)


def model_of(kind: str) -> Recurrent:
    torch.manual_seed(3)
    model = build(ModelSpec(kind=kind, vocabulary=26, width=36, layers=2, context=200, head_bias=True)).eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    assert isinstance(model, Recurrent)
    return model


def engine_of(model: Recurrent, pages: int = 1000, step_tokens: int = 256) -> Engine:
    backend = TorchBackend(model)
    return Engine(backend, Tokenizer(), cache_bytes=pages * backend.page_bytes, step_tokens=step_tokens)  # type: ignore[arg-type]


def random_request(rng: random.Random, beginning: list[int], number: int) -> AnyRequest:
    prompt = (*beginning[: rng.randrange(len(beginning))], *rng.choices(range(1, 26), k=rng.randrange(1, 20)))
    kind = number % 3
    if kind == 0:
        return Request(prompt, SamplingParams(seed=number), StopConfig(rng.randrange(1, 20)), rng.choice([1, 3]), 2)
    if kind == 1:
        return ScoreRequest(prompt, tuple(tuple(rng.choices(range(26), k=rng.randrange(1, 5))) for _ in range(3)))
    return LogitsRequest(prompt)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("seed", range(3))
def test_requests_give_the_same_bits_alone_and_together(kind: str, seed: int) -> None:
    rng, model = random.Random(seed), model_of(kind)
    beginning = rng.choices(range(1, 26), k=60)
    requests = [random_request(rng, beginning, number) for number in range(15)]
    together = engine_of(model, step_tokens=rng.choice([16, 40, 256]), pages=rng.choice([40, 1000]))
    handles = []
    for request in requests:
        handles.append(together.submit(request))
        for _ in range(rng.randrange(3)):
            together.step()
    while together.step():
        pass
    for handle, request in zip(handles, requests, strict=True):
        assert result(handle) == result(engine_of(model).submit(request).wait())


def test_logits_through_pages_equal_the_model_in_float64() -> None:
    model, prompt = model_of("lstm"), tuple(range(1, 26)) * 3
    expected = copy.deepcopy(model).double()(torch.tensor([prompt]))[0, -1]
    handle = engine_of(model, step_tokens=10).submit(LogitsRequest(prompt)).wait()
    assert np.allclose(handle.logits, expected.numpy(force=True), rtol=0, atol=1e-5)
