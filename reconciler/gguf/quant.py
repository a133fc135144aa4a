"""Quantizations by the names that llama.cpp gives them: what family they are of, how large, and which is better."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum


class Family(StrEnum):
    """How the weights of a quantization are stored."""

    FLOAT = "float"
    LEGACY = "legacy"  # one scale (and for _1 a minimum) for 32 weights
    K = "k"  # scales of scales over 256 weights
    I = "i"  # noqa: E741  # weights looked up in a grid of vectors
    TERNARY = "ternary"  # for models trained with weights of -1, 0 and 1
    LOW = "low-bit"  # one scale for 64 or 128 weights of one or two bits, for models trained so
    MICROSCALING = "microscaling"  # four-bit floats with a shared scale


class Quant(StrEnum):
    """The file types of llama.cpp (`LlamaFileType`, without its MOSTLY_ and ALL_), in their order."""

    F32 = "F32"
    F16 = "F16"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q8_0 = "Q8_0"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q2_K = "Q2_K"
    Q3_K_S = "Q3_K_S"
    Q3_K_M = "Q3_K_M"
    Q3_K_L = "Q3_K_L"
    Q4_K_S = "Q4_K_S"
    Q4_K_M = "Q4_K_M"
    Q5_K_S = "Q5_K_S"
    Q5_K_M = "Q5_K_M"
    Q6_K = "Q6_K"
    IQ2_XXS = "IQ2_XXS"
    IQ2_XS = "IQ2_XS"
    Q2_K_S = "Q2_K_S"
    IQ3_XS = "IQ3_XS"
    IQ3_XXS = "IQ3_XXS"
    IQ1_S = "IQ1_S"
    IQ4_NL = "IQ4_NL"
    IQ3_S = "IQ3_S"
    IQ3_M = "IQ3_M"
    IQ2_S = "IQ2_S"
    IQ2_M = "IQ2_M"
    IQ4_XS = "IQ4_XS"
    IQ1_M = "IQ1_M"
    BF16 = "BF16"
    TQ1_0 = "TQ1_0"
    TQ2_0 = "TQ2_0"
    MXFP4_MOE = "MXFP4_MOE"
    NVFP4 = "NVFP4"
    Q1_0 = "Q1_0"
    Q2_0 = "Q2_0"

    @property
    def family(self) -> Family:
        return _FAMILIES.get(self, Family.I if self.startswith("I") else Family.K)

    @property
    def bits(self) -> float:
        """Bits a weight that a typical whole file takes, embeddings and all. Small models take up to twice as many,
        since rows that are no multiple of 256 cannot be stored in the smaller types."""
        return _BITS[self]

    @property
    def rank(self) -> int:
        """Its place in the order from the worst and smallest to the best, from 0; no two are alike."""
        return _RANKS[self]

    @property
    def automatic(self) -> bool:
        """Whether it may be chosen for a person who asked for what fits best. The others must be asked for by name.

        F32 is twice the size of what models are trained in, and not better. Ternary and low-bit ones are the native
        form of models trained so, and ruin any other, as does IQ1. NVFP4 is only quick on few GPUs, and needs a new
        engine.
        """
        return self not in _ON_REQUEST


# `general.file_type` of a GGUF header: the numbers of the names above, in their order (llama_ftype of llama.cpp).
FILE_TYPES = dict(zip((*range(4), *range(7, 33), *range(36, 42)), Quant, strict=True))


def named(file_type: int) -> str:
    """The name of a file type by its number, `UNKNOWN(n)` for one that is not known here."""
    found = FILE_TYPES.get(file_type)
    return found.value if found is not None else f"UNKNOWN({file_type})"


_FAMILIES: Mapping[Quant, Family] = {
    **dict.fromkeys((Quant.F32, Quant.F16, Quant.BF16), Family.FLOAT),
    **dict.fromkeys((Quant.Q4_0, Quant.Q4_1, Quant.Q5_0, Quant.Q5_1, Quant.Q8_0), Family.LEGACY),
    **dict.fromkeys((Quant.TQ1_0, Quant.TQ2_0), Family.TERNARY),
    **dict.fromkeys((Quant.Q1_0, Quant.Q2_0), Family.LOW),
    **dict.fromkeys((Quant.MXFP4_MOE, Quant.NVFP4), Family.MICROSCALING),
}

# What llama-quantize (b11434) calculates for the tensors of a dense model of 8 billion weights with a vocabulary of
# 128,256; its documentation measured the same figures on Llama 3.1 8B. MXFP4_MOE is that of a model of 128 experts,
# since it leaves a dense one in Q8_0. The tool does not write NVFP4: there it is the format's own figure.
_BITS: Mapping[Quant, float] = {
    Quant.F32: 32.0, Quant.F16: 16.0, Quant.BF16: 16.0, Quant.Q8_0: 8.5, Quant.Q6_K: 6.56, Quant.Q5_K_M: 5.7,
    Quant.Q5_K_S: 5.57, Quant.Q5_1: 6.04, Quant.Q5_0: 5.57, Quant.Q4_K_M: 4.89, Quant.Q4_K_S: 4.67, Quant.Q4_1: 5.1,
    Quant.Q4_0: 4.64, Quant.IQ4_NL: 4.68, Quant.IQ4_XS: 4.46, Quant.MXFP4_MOE: 4.47, Quant.NVFP4: 4.5,
    Quant.Q3_K_L: 4.3, Quant.Q3_K_M: 4.0, Quant.Q3_K_S: 3.64, Quant.IQ3_M: 3.76, Quant.IQ3_S: 3.66, Quant.IQ3_XS: 3.5,
    Quant.IQ3_XXS: 3.37, Quant.Q2_K: 3.16, Quant.Q2_K_S: 2.97, Quant.IQ2_M: 2.93, Quant.IQ2_S: 2.74,
    Quant.IQ2_XS: 2.59, Quant.IQ2_XXS: 2.38, Quant.Q2_0: 2.68, Quant.TQ2_0: 2.52, Quant.TQ1_0: 2.19,
    Quant.IQ1_M: 2.15, Quant.IQ1_S: 2.0, Quant.Q1_0: 1.48,
}  # fmt: skip

# From worse to better. Where llama-quantize tells the perplexity that is lost on Llama 3 8B (Q3_K_S 1.63, Q3_K_M 0.66,
# Q3_K_L 0.56, Q4_0 0.47, Q4_1 0.45, Q4_K_S 0.27, Q4_K_M 0.18, Q5_0 0.13, Q5_1 0.11, Q5_K_S 0.10, Q5_K_M 0.06, Q6_K
# 0.02, Q8_0 0.003), that decides: Q4_1 and Q5_1 are larger than the K ones above them. The rest go by size, but for
# the IQ4 ones, which lose less than Q4_0 and Q4_1.
_ORDER = (
    Quant.Q1_0, Quant.IQ1_S, Quant.IQ1_M, Quant.TQ1_0, Quant.TQ2_0, Quant.Q2_0, Quant.IQ2_XXS, Quant.IQ2_XS,
    Quant.Q2_K_S, Quant.IQ2_S, Quant.IQ2_M, Quant.Q2_K, Quant.IQ3_XXS, Quant.IQ3_XS, Quant.Q3_K_S, Quant.IQ3_S,
    Quant.IQ3_M, Quant.Q3_K_M, Quant.Q3_K_L, Quant.Q4_0, Quant.Q4_1, Quant.IQ4_XS, Quant.MXFP4_MOE, Quant.NVFP4,
    Quant.IQ4_NL, Quant.Q4_K_S, Quant.Q4_K_M, Quant.Q5_0, Quant.Q5_1, Quant.Q5_K_S, Quant.Q5_K_M, Quant.Q6_K,
    Quant.Q8_0, Quant.F16, Quant.BF16, Quant.F32,
)  # fmt: skip
_RANKS: Mapping[Quant, int] = {quant: place for place, quant in enumerate(_ORDER)}

_ON_REQUEST = frozenset(
    (Quant.F32, Quant.TQ1_0, Quant.TQ2_0, Quant.Q1_0, Quant.Q2_0, Quant.IQ1_S, Quant.IQ1_M, Quant.NVFP4)
)

# What people write for them besides their names. Q3_K, Q4_K and Q5_K are llama-quantize's own aliases. Q6 and Q8 leave
# no choice; Q4 does (files of that name hold Q4_0, Q4_K_M …), and int8, int4 and fp4 are other formats' words.
_ALIASES: Mapping[str, Quant] = {
    "Q3K": Quant.Q3_K_M, "Q4K": Quant.Q4_K_M, "Q5K": Quant.Q5_K_M, "Q6": Quant.Q6_K, "Q8": Quant.Q8_0,
    "FP16": Quant.F16, "FLOAT16": Quant.F16, "FP32": Quant.F32, "FLOAT32": Quant.F32, "BFLOAT16": Quant.BF16,
    "MXFP4": Quant.MXFP4_MOE,
}  # fmt: skip
_WRITTEN: Mapping[str, Quant] = {**{quant.replace("_", ""): quant for quant in Quant}, **_ALIASES}
_PREFIX = re.compile(r"^(LLAMAFTYPE|GGMLTYPE)?(MOSTLY|ALL)?")


def parse(text: str) -> Quant | None:
    """The Quant that a person means, or None. Case and separators do not count: q4_k_m, Q4-K-M and q4km are one.

    A mixed flavour such as UD-Q4_K_XL is not a Quant; `names.from_filename` reads those.
    """
    return _WRITTEN.get(_PREFIX.sub("", re.sub(r"[-_. ]", "", text.upper()), count=1))
