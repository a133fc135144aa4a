"""Quantizations by the names that llama.cpp gives them."""

from __future__ import annotations

from enum import StrEnum


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


# `general.file_type` of a GGUF header: the numbers of the names above, in their order (llama_ftype of llama.cpp).
FILE_TYPES = dict(zip((*range(4), *range(7, 33), *range(36, 42)), Quant, strict=True))


def named(file_type: int) -> str:
    """The name of a file type by its number, `UNKNOWN(n)` for one that is not known here."""
    found = FILE_TYPES.get(file_type)
    return found.value if found is not None else f"UNKNOWN({file_type})"
