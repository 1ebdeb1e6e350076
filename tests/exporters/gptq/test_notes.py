"""What is said of a plan, and the limits of kernels against gptqmodel's own checks."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from asvd_q.artefact import AdvisingExporter
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q_exporters._runner import quiet
from asvd_q_exporters.gptq import GptqExporter
from asvd_q_exporters.gptq.kernels import EXLLAMA, MARLIN, marlin_rank_multiple
from asvd_q_exporters.gptq.names import compact
from asvd_q_exporters.gptq.settings import Matrix, matrices
from tests.exporters.gptq.test_plan import dense, factors


def notes(*layers: LayerPlan) -> list[str]:
    exporter = GptqExporter()
    assert isinstance(exporter, AdvisingExporter)
    return exporter.notes(Plan(float_type="float32", layers=layers))


def wide(name: str = "model.layers.0.k_proj", **fields: object) -> LayerPlan:
    """A layer that every kernel takes, but for what is given."""
    spec = QuantSpec.model_validate({"bits": 4, "group_size": 128, **fields})
    return dense(name, shape=(256, 512), spec=spec)


def test_nothing_is_said_of_what_every_loader_and_kernel_takes() -> None:
    plain = QuantSpec(bits=4, group_size=128)
    assert notes(wide(), dense("lm_head", spec=None, block=None)) == []
    assert notes(wide(), factors(shape=(256, 512), rank=128, a=plain, b=plain)) == []
    assert notes(dense(spec=None)) == []


def test_asymmetric_codes_name_who_misreads_them() -> None:
    (version,) = notes(wide(bits=8, symmetric=False))[:1]
    assert "gptq_v2" in version
    assert "GenAI" in version
    assert "model.layers.0.k_proj" in version
    fused = [note for note in notes(wide(symmetric=False)) if "TORCH_FUSED" in note]
    assert len(fused) == 1
    assert not [note for note in notes(wide(bits=8, symmetric=False)) if "TORCH_FUSED" in note]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bits": 2}, "2-bit codes"),
        ({"bits": 3}, "3-bit codes"),
        ({"group_size": 16}, "groups of 16"),
        ({"group_size": 256}, "groups of 256"),
        ({"bits": 8, "symmetric": False}, "asymmetric 8-bit codes"),
    ],
)
def test_layers_for_slow_kernels_are_named_with_the_reason(
    fields: dict[str, object], reason: str
) -> None:
    names = [f"model.layers.{index}.up_proj" for index in range(3)]
    slow = [note for note in notes(*(wide(name, **fields) for name in names)) if "slow" in note]
    assert len(slow) == 1
    assert "model.layers.{0-2}.up_proj" in slow[0]
    assert slow[0].endswith(reason)


@pytest.mark.parametrize(
    ("shape", "rank", "multiple"),
    [((256, 512), 32, 64), ((256, 512), 96, 64), ((192, 512), 64, 128), ((192, 320), 64, 128)],
)
def test_the_rank_that_marlin_wants_is_named(
    shape: tuple[int, int], rank: int, multiple: int
) -> None:
    spec = QuantSpec(bits=4, group_size=32)
    (note,) = notes(factors(shape=shape, rank=rank, a=spec, b=spec))
    assert "ExLlama is left" in note
    assert f"decompose.rank_multiple {multiple} " in note
    rounded = -(-rank // multiple) * multiple
    assert notes(factors(shape=shape, rank=rounded, a=spec, b=spec)) == []


def test_sides_of_8_bit_codes_leave_slow_kernels() -> None:
    spec = QuantSpec(bits=8, group_size=32)
    (note,) = notes(factors(shape=(256, 512), rank=32, a=spec, b=spec))
    assert "slow portable kernels are left" in note
    assert "decompose.rank_multiple 64 " in note


def test_no_rank_helps_a_layer_of_odd_sides() -> None:
    spec = QuantSpec(bits=4, group_size=32)
    (note,) = notes(factors(shape=(96, 160), rank=64, a=spec, b=spec))
    assert "Marlin" in note
    assert "rank_multiple" not in note


def test_settings_that_differ_are_for_one_loader() -> None:
    (note,) = notes(wide(), wide("model.layers.0.v_proj", bits=8))
    assert "`dynamic`" in note
    assert "transformers does not" in note


def test_act_order_and_the_cpu() -> None:
    found = " ".join(notes(wide(method="gptq", act_order=True)))
    assert "desc_act" in found
    assert "static_groups" in found
    fixed = notes(wide(method="gptq", act_order=True, static_groups=True))
    assert fixed == []
    (cpu,) = notes(wide(group_size=-1))
    assert 'backend="torch"' in cpu


def test_names_are_compact() -> None:
    names = ["a.0.x", "a.1.x", "b", "a.2.x", "a.4.x", "a.1.y", "a.11.y", "3.q"]
    assert compact(names) == "a.{0-2,4}.x, b, a.{1,11}.y, 3.q"
    assert compact(["a.7.x.3.y"]) == "a.7.x.3.y"
    assert compact([]) == ""


def test_saying_it_loads_neither_torch_nor_gptqmodel() -> None:
    program = (
        "import sys\n"
        "from asvd_q_exporters.gptq import GptqExporter\n"
        "from asvd_q.plan import LayerPlan, Plan, QuantSpec\n"
        "layer = LayerPlan(name='a', kind='a', block=0, shape=(32, 64),\n"
        "                  quantization={'weight': QuantSpec(bits=3, symmetric=False)})\n"
        "plan = Plan(float_type='float32', layers=(layer,))\n"
        "exporter = GptqExporter()\n"
        "assert not exporter.can_express(plan) and exporter.notes(plan)\n"
        "print(sorted({'torch', 'gptqmodel', 'transformers'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_kernels_take_what_gptqmodel_says() -> None:
    """Its classes' own validation, which asks for no GPU where no device is named."""
    import torch

    with quiet():
        from gptqmodel.nn_modules.qlinear.exllamav2 import ExllamaV2Linear
        from gptqmodel.nn_modules.qlinear.machete import MacheteLinear
        from gptqmodel.nn_modules.qlinear.marlin import MarlinLinear
        from gptqmodel.utils.marlin import marlin_is_tile_aligned

    def takes(kernel: type, spec: QuantSpec, rows: int, columns: int) -> bool:
        return bool(
            kernel._validate(  # type: ignore[attr-defined]
                bits=spec.bits,
                group_size=spec.group_size,
                sym=spec.symmetric,
                in_features=columns,
                out_features=rows,
                pack_dtype=torch.int32,
            )[0]
        )

    sides = (32, 64, 96, 128, 192, 256, 384)
    for bits, group, symmetric, rows, columns in itertools.product(
        (2, 3, 4, 8), (-1, 16, 32, 64, 128, 256), (True, False), sides, sides
    ):
        spec = QuantSpec(bits=bits, group_size=group, symmetric=symmetric)
        shape = rows, columns
        if group == columns and group not in (32, 64, 128):
            continue  # it takes any size for one group; so may we, but the note does not
        aligned = marlin_is_tile_aligned(rows, columns)
        marlin = takes(MarlinLinear, spec, rows, columns) and aligned
        exllama = takes(ExllamaV2Linear, spec, rows, columns)
        assert (MARLIN.misses(shape, spec) is None) is marlin, (spec, shape)
        assert (EXLLAMA.misses(shape, spec) is None) is exllama, (spec, shape)
        if symmetric and takes(MacheteLinear, spec, rows, columns):
            assert marlin, (spec, shape)
        if not symmetric:  # written as gptq_v2
            assert "gptq_v2" not in {form.value for form in MacheteLinear.SUPPORTS_FORMATS}


def test_the_multiple_is_for_factors_alone() -> None:
    found = {matrix.slot: marlin_rank_multiple(matrix) for matrix in matrices([factors()])}
    assert found == {"B": None, "A": 128}  # sides of 96 and 64
    assert marlin_rank_multiple(Matrix("a", "weight", (64, 64), None)) is None
