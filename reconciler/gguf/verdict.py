"""Whether a file is the quantization that it is taken for, by what its header says of every tensor.

Two witnesses are heard: `general.file_type`, which the writer of the file set, and the types of the tensors, which
cannot lie, as the engine reads them by those. A quantization is a recipe that gives most matrices one type and some a
better one; a row that is no multiple of 256 gets the fallback of its type. The recipes are those of llama.cpp's
quantizer, and the tests hold them to what it gives for models of many shapes.

Embeddings and the output matrix are left aside: they may have any type, and in a small model they are most of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reconciler.gguf.header import BLOCKS, Header, Share, Tensor, histogram, type_name
from reconciler.gguf.names import Named
from reconciler.gguf.quant import FILE_TYPES, Family, Quant

STRANGERS = 0.06  # of the weights in the layers, at most, may have a type that the recipe does not have
NEEDED = 0.03  # and at least so many have the better type by which an M differs from an S
FLOATS = 0.5  # below this, matrices that a quantizer leaves alone are no contradiction
MIXED_BITS = (0.55, 1.75)  # real bits a weight of a mixed flavour, to those of the quantization it is built on


@dataclass(frozen=True, slots=True)
class Recipe:
    """The tensor types of the matrices in the layers: one of `base` for most, `better` for some.

    `marks` are the types of which a part is there unless a plain S was made (or with `--pure`).
    """

    base: tuple[str, ...]
    better: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


# From llama_ftype_get_default_type and llama_tensor_get_type_impl of llama.cpp (b11434). Models of eight experts have
# attn_k and attn_v in Q8_0, and attn_output in Q5_K, in nearly all of them.
_EIGHT = ("Q8_0", "Q5_K")
RECIPES: Mapping[Quant, Recipe] = {
    Quant.F32: Recipe(("F32",)),
    Quant.F16: Recipe(("F16",)),
    Quant.BF16: Recipe(("BF16",)),
    Quant.Q4_0: Recipe(("Q4_0",), ("Q4_1", *_EIGHT)),
    Quant.Q4_1: Recipe(("Q4_1",), _EIGHT),
    Quant.Q5_0: Recipe(("Q5_0",), ("Q5_1", *_EIGHT)),
    Quant.Q5_1: Recipe(("Q5_1",), _EIGHT),
    Quant.Q8_0: Recipe(("Q8_0",)),
    Quant.Q2_K_S: Recipe(("Q2_K",), ("Q4_K", *_EIGHT)),
    Quant.Q2_K: Recipe(("Q2_K",), ("Q3_K", "Q4_K", *_EIGHT), ("Q3_K",)),
    Quant.Q3_K_S: Recipe(("Q3_K",), _EIGHT),
    Quant.Q3_K_M: Recipe(("Q3_K",), ("Q4_K", *_EIGHT), ("Q4_K",)),
    Quant.Q3_K_L: Recipe(("Q3_K",), ("Q4_K", *_EIGHT), ("Q5_K", "Q4_K")),
    Quant.Q4_K_S: Recipe(("Q4_K",), _EIGHT),
    Quant.Q4_K_M: Recipe(("Q4_K",), ("Q6_K", *_EIGHT), ("Q6_K",)),
    Quant.Q5_K_S: Recipe(("Q5_K",), ("Q8_0",)),
    Quant.Q5_K_M: Recipe(("Q5_K",), ("Q6_K", "Q8_0"), ("Q6_K",)),
    Quant.Q6_K: Recipe(("Q6_K",), ("Q8_0",)),
    Quant.IQ1_S: Recipe(("IQ1_S",), ("IQ2_XXS", "Q2_K", "Q4_K", "Q5_K")),
    Quant.IQ1_M: Recipe(("IQ1_M",), ("IQ2_XXS", "Q2_K", "Q4_K", "Q5_K")),
    Quant.IQ2_XXS: Recipe(("IQ2_XXS",), ("Q2_K", "Q4_K", "Q5_K")),
    Quant.IQ2_XS: Recipe(("IQ2_XS",), ("Q2_K", "Q4_K", "Q5_K")),
    Quant.IQ2_S: Recipe(("IQ2_XS",), ("IQ3_S", "Q4_K", "Q5_K"), ("IQ3_S",)),
    Quant.IQ2_M: Recipe(("IQ2_S",), ("IQ3_S", "Q4_K", "Q5_K")),
    Quant.IQ3_XXS: Recipe(("IQ3_XXS",), ("IQ2_S", "IQ3_S", "Q3_K", "Q4_K", *_EIGHT)),
    Quant.IQ3_XS: Recipe(("IQ3_S", "IQ3_XXS"), ("Q4_K", *_EIGHT), ("IQ3_XXS",)),
    Quant.IQ3_S: Recipe(("IQ3_S",), ("Q4_K", *_EIGHT)),
    Quant.IQ3_M: Recipe(("IQ3_S",), ("Q4_K", *_EIGHT), ("Q4_K",)),
    Quant.IQ4_NL: Recipe(("IQ4_NL",), _EIGHT),
    Quant.IQ4_XS: Recipe(("IQ4_XS",), _EIGHT),
    Quant.TQ1_0: Recipe(("TQ1_0",), ("Q8_0",)),
    Quant.TQ2_0: Recipe(("TQ2_0",), ("Q8_0",)),
    Quant.Q1_0: Recipe(("Q1_0",), ("Q8_0",)),
    Quant.Q2_0: Recipe(("Q2_0",), ("Q8_0",)),
    Quant.MXFP4_MOE: Recipe(("MXFP4", "Q8_0")),
    Quant.NVFP4: Recipe(("NVFP4",), ("Q8_0",)),
}

# What a matrix gets whose rows its type cannot hold (tensor_type_fallback of llama.cpp; the second ones were in use
# before 2026). What those cannot hold either is F16.
FALLBACKS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), ("IQ4_NL",)),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), ("Q4_0", "IQ4_NL")),
    "Q2_0": ("Q4_0",),
    "Q4_K": ("Q5_0",),
    "Q5_K": ("Q5_1",),
    "Q6_K": ("Q8_0",),
}
_FLOAT_TYPES = ("F32", "F16", "BF16", "F64")
_REMOVED = range(31, 34), range(36, 39)
_SIZES = {type_name(kind): per for kind, (per, _) in BLOCKS.items()}


@dataclass(frozen=True, slots=True)
class Part:
    """What one tensor type has of a model: `share` of the weights (0 to 1), and bytes."""

    type: str
    tensors: int
    weights: int
    bytes: int
    share: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a model's files are. `refusal` says why they are not what was asked for; empty where they are.

    quant    the canonical quantization; None where none covers it
    label    what to call it: the flavour as written ("UD-Q4_K_XL"), the quantization, or "unknown"
    mixed    its mixture differs from the recipe of `quant` by design
    mixture  what is really in it, the type with most weights first
    bits     real bits a weight, over all tensors
    note     what a person should know though nothing is wrong with it
    """

    quant: Quant | None
    label: str
    mixed: bool
    mixture: tuple[Part, ...]
    bits: float
    refusal: str = ""
    hint: str = ""
    note: str = ""

    @property
    def accepted(self) -> bool:
        return not self.refusal

    def __str__(self) -> str:
        """`Q4_K_M, 4.89 bits a weight: 82 % Q4_K, 18 % Q6_K`"""
        parts = ", ".join(f"{_percent(part.share)} {part.type}" for part in self.mixture if part.share >= 0.005)
        return f"{self.label}, {self.bits:.2f} bits a weight: {parts}"


def judge(named: Named | None, asked: Quant | None, headers: Sequence[Header], *, explicit: bool = False) -> Verdict:
    """Hold the headers of all files of one model against its name and what was asked for.

    `named` is what the name says (of the first file), `asked` the manifest's `quant`. `explicit` says that a person
    named this very file: then one that no quantization covers is used as it is, and a name that does not fit the
    content is only noted. What was *asked* and is not there is always refused.
    """
    matrices = _together(_matrices(headers))
    told = FILE_TYPES.get(headers[0].integer("general.file_type", -1)) if headers else None
    case = _Case(named, asked, headers, matrices, told, _recognised(matrices, told))
    refusal = _unusable(headers)
    if refusal:
        return case.verdict(None, refusal=refusal, hint="choose another quantization of this model, such as Q4_0")
    claim = asked or (named.quant if named else None)
    if claim is None:
        return _unclaimed(case, explicit)
    return _claimed(case, claim, explicit)


@dataclass(frozen=True, slots=True)
class _Case:
    named: Named | None
    asked: Quant | None
    headers: Sequence[Header]
    matrices: tuple[Matrices, ...]
    told: Quant | None  # by general.file_type
    found: Quant | None  # by the tensors

    @property
    def flavoured(self) -> bool:
        return self.named is not None and self.named.mixed

    def verdict(
        self, quant: Quant | None, *, mixed: bool = False, refusal: str = "", hint: str = "", note: str = ""
    ) -> Verdict:
        mixture = mixture_of(self.headers)
        label = self.named.label if mixed and self.named and self.named.label else quant.value if quant else "unknown"
        return Verdict(quant, label, mixed, mixture, bits_of(mixture), refusal, hint, note)

    def what(self) -> str:
        """What was found, in words."""
        mixture = mixture_of(self.headers)
        parts = ", ".join(f"{_percent(part.share)} {part.type}" for part in mixture[:4] if part.share >= 0.005)
        name = f"{self.found}: " if self.found else ""
        return f"{name}{parts or 'no weights'} ({bits_of(mixture):.2f} bits a weight)"


def _unclaimed(case: _Case, explicit: bool) -> Verdict:
    if case.found is not None:
        return case.verdict(case.found)
    if explicit:
        return case.verdict(None, note=f"no quantization of llama.cpp covers {case.what()}")
    said = f"neither its name nor its content is a quantization that is known: {case.what()}"
    return case.verdict(None, refusal=said, hint="name the file itself with file: to use it as it is")


def _claimed(case: _Case, claim: Quant, explicit: bool) -> Verdict:
    named = case.named.quant if case.named else None
    if case.flavoured and claim == named:
        return _flavoured(case, claim, explicit)
    wrong = misfit(claim, case.matrices)
    agree = case.told is not None and case.told == case.found
    if not wrong and agree and case.told != claim != _recognised(case.matrices, None):
        wrong = f"its header says {case.told}, and its tensors are those of {case.told}"
    if not wrong:
        note = f"its header calls itself {case.told}" if case.told not in (None, claim) else ""
        return case.verdict(claim, note=note)
    every = _matrices(case.headers)
    rest = tuple(tensor for tensor in every if not _native_expert(tensor))
    if len(rest) < len(every) and not misfit(claim, _together(rest)):
        return case.verdict(claim, mixed=True, note="its experts are MXFP4, as they were trained")
    if case.asked is None and explicit:
        note = f"its name says {claim}, but {wrong}"
        return case.verdict(case.found, note=note)
    says = f"{case.asked} was asked for" if case.asked else f"its name says {claim}"
    hint = f"ask for quant: {case.found}" if case.found else "choose another file of this model"
    return case.verdict(case.found, refusal=f"{says}, but {wrong}; it holds {case.what()}", hint=hint)


def _flavoured(case: _Case, claim: Quant, explicit: bool) -> Verdict:
    """A mixture by design is only held to the size that its name suggests."""
    bits = bits_of(mixture_of(case.headers))
    least, most = (claim.bits * factor for factor in MIXED_BITS)
    label = case.named.label if case.named else claim.value
    if least <= bits <= most or misfit(claim, case.matrices) == "":
        return case.verdict(claim, mixed=True)
    wrong = f"a {label} has {least:.1f} to {most:.1f} bits a weight, but it holds {case.what()}"
    if case.asked is None and explicit:
        return case.verdict(case.found, note=wrong)
    return case.verdict(case.found, refusal=wrong, hint="choose another file of this model")


def _unusable(headers: Sequence[Header]) -> str:
    kinds = {tensor.type for header in headers for tensor in header.tensors}
    removed = sorted(type_name(kind) for kind in kinds if any(kind in numbers for numbers in _REMOVED))
    return f"its tensors are {', '.join(removed)}, which llama.cpp no longer reads" if removed else ""


def mixture_of(headers: Iterable[Header]) -> tuple[Part, ...]:
    """What is in a model, over all its files."""
    shares: dict[int, Share] = histogram(headers)
    total = sum(share.weights for share in shares.values()) or 1
    return tuple(
        Part(type_name(kind), share.tensors, share.weights, share.bytes, share.weights / total)
        for kind, share in shares.items()
    )


def bits_of(mixture: Iterable[Part]) -> float:
    """Bits a weight; types of unknown size do not count. 0 of nothing."""
    sized = [part for part in mixture if part.bytes]
    weights = sum(part.weights for part in sized)
    return sum(part.bytes for part in sized) * 8 / weights if weights else 0.0


@dataclass(frozen=True, slots=True)
class Matrices:
    """All matrices of one type and one length of rows, together."""

    type: str
    row: int
    weights: int
    bytes: int


def misfit(quant: Quant, matrices: Sequence[Matrices]) -> str:
    """Why these matrices are not of the recipe of `quant`, in words; empty where they are."""
    weights = _by_type(matrices)
    total = sum(weights.values())
    if not total:
        return "it has no matrices"
    most = max(weights, key=lambda kind: weights[kind])
    if quant.family is Family.FLOAT:
        return "" if most == quant else f"most of its weights are {most}"
    floats = sum(weights[kind] for kind in _FLOAT_TYPES if kind in weights)
    if floats > FLOATS * total:
        return f"most of its weights are {most}"
    recipe = RECIPES[quant]
    base, better = _by_type(matrices, recipe.base), _by_type(matrices, recipe.better)
    strange = total - floats - sum(base.values()) - sum(better.values())
    others = {kind: count - base.get(kind, 0) for kind, count in weights.items() if kind not in _FLOAT_TYPES}
    if sum(base.values()) < max(others.values(), default=0) or not base:
        return f"most of its weights are {most}"
    if strange > STRANGERS * (total - floats):
        types = sorted(kind for kind in others if kind not in base and kind not in better)
        return f"{_percent(strange / total)} of its weights are {', '.join(types) or most}"
    return ""


def _unmarked(quant: Quant, matrices: Sequence[Matrices]) -> bool:
    """Whether a recipe's better types are missing, so that another one of the same base is just as likely."""
    marks = RECIPES[quant].marks
    total = sum(some.weights for some in matrices) or 1
    return bool(marks) and sum(_by_type(matrices, marks).values()) < NEEDED * total


def _recognised(matrices: Sequence[Matrices], told: Quant | None) -> Quant | None:
    """The quantization of these matrices: what the header says if they fit it, else the recipe that fits most closely.

    One whose better types are all there comes before one that is content without.
    """
    if told and not misfit(told, matrices):
        return told
    fitting = [quant for quant in Quant if not misfit(quant, matrices) and not _unmarked(quant, matrices)]
    if not fitting:
        return None
    bits = sum(some.bytes for some in matrices) * 8 / sum(some.weights for some in matrices if some.bytes)
    return min(fitting, key=lambda quant: (not RECIPES[quant].marks, abs(quant.bits - bits), quant.rank))


def _by_type(matrices: Iterable[Matrices], wanted: Sequence[str] | None = None) -> dict[str, int]:
    """Weights of each type; with `wanted`, of those types alone, and of their fallbacks where rows do not fit them."""
    found: dict[str, int] = {}
    for some in matrices:
        if wanted is None or some.type in wanted or any(some.type in _instead(of, some.row) for of in wanted):
            found[some.type] = found.get(some.type, 0) + some.weights
    return found


def _instead(kind: str, row: int) -> tuple[str, ...]:
    return FALLBACKS.get(kind, ()) if row % _SIZES[kind] else ()


def _matrices(headers: Sequence[Header]) -> tuple[Tensor, ...]:
    """What the recipes are about: the matrices of the layers; of a model without layers, all matrices."""
    every = tuple(t for header in headers for t in header.tensors if sum(extent > 1 for extent in t.shape) > 1)
    return tuple(tensor for tensor in every if "blk." in tensor.name) or every


def _together(tensors: Iterable[Tensor]) -> tuple[Matrices, ...]:
    """A hundred layers are much alike, and a file is held against three dozen recipes."""
    found: dict[tuple[int, int], list[int]] = {}
    for tensor in tensors:
        sums = found.setdefault((tensor.type, tensor.shape[0]), [0, 0])
        sums[0] += tensor.count
        sums[1] += tensor.bytes
    return tuple(Matrices(type_name(kind), row, *sums) for (kind, row), sums in found.items())


def _native_expert(tensor: Tensor) -> bool:
    return "_exps" in tensor.name and type_name(tensor.type) == "MXFP4"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
