"""POST /v1/embeddings: texts as vectors, pooled from the model's last hidden states."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from ..engine import HiddenHandle, HiddenRequest
from .bodies import EmbeddingsBody
from .errors import ApiError
from .prompts import Prompt, encode_prompt, prompts_of, too_long
from .requests import answer

if TYPE_CHECKING:
    from .call import Call
    from .models import Model

MOST_TEXTS = 2048
_AT_ONCE = 16  # texts whose hidden states are held


async def embeddings(call: Call, body: EmbeddingsBody) -> Response:
    """Turn texts into vectors of length one: the mean of the hidden states of their tokens, or the last one's."""
    given = prompts_of(body.input, "input", MOST_TEXTS)
    model = await call.use(body.model)
    width = model.lm.spec.width
    if body.dimensions not in (None, width):
        raise ApiError(400, f"dimensions is {body.dimensions}; vectors of this model have {width}", "dimensions")
    call.admit(min(len(given), _AT_ONCE))
    prompts = await call.prepare(lambda: [_encode(model, text) for text in given])
    vectors: list[NDArray[np.float32]] = []
    for start in range(0, len(prompts), _AT_ONCE):
        texts = prompts[start : start + _AT_ONCE]
        for handle in [call.hold(model.engine.submit(HiddenRequest(text.ids))) for text in texts]:
            await call.done(handle)
            vectors.append(_pooled(handle, body.pooling))
    tokens = sum(len(prompt.ids) for prompt in prompts)
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return answer({"object": "list", "data": data, "model": model.id, "usage": usage})


def _encode(model: Model, text: Any) -> Prompt:
    prompt = encode_prompt(model, text, "input")
    if len(prompt.ids) > model.context:
        raise too_long(model, len(prompt.ids), "input")
    return prompt


def _pooled(handle: HiddenHandle, pooling: str) -> NDArray[np.float32]:
    hidden = handle.hidden.astype(np.float64)
    vector = hidden[-1] if pooling == "last" else hidden.mean(0)
    scaled: NDArray[np.float32] = (vector / (np.linalg.norm(vector) or 1.0)).astype(np.float32)
    return scaled


def _written(vector: NDArray[np.float32], format: str | None) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if format == "base64" else vector.tolist()
