"""Counts in programs written by hand, in the forms that the compilers give them."""

import pytest

from experiments.benchmark import compiled

_TPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b), metadata={op_name="scatter("}
}

ENTRY %main (rows: f32[8192,128], x: bf16[32,1024]) -> f32[8192,128] {
  %rows = f32[8192,128]{1,0:T(8,128)} parameter(0)
  %x = bf16[32,1024]{1,0:T(8,128)(2,1)} parameter(1)
  %rs.1 = f32[2048,128]{1,0:T(8,128)S(1)} reduce-scatter(%rows), replica_groups={{0,1,2,3}}, \
dimensions={0}, to_apply=%region_0.1
  %convolution.1 = bf16[32,1024]{1,0} convolution(%x, %rows), dim_labels=bf_io->bf
  %convolution.2 = f32[6,6]{1,0} convolution(%rs.1, %rs.1), dim_labels=bf_io->bf, \
operand_precision={highest,highest}
  %ar.1 = (f32[6,6]{1,0}, /*index=1*/pred[4]{0}) all-reduce(%convolution.2, %c), \
replica_groups=[1,4]<=[4], to_apply=%region_0.1
  %scatter.1 = f32[6]{0} scatter(%a, %b, %c), to_apply=%region_0.1
  %send.1 = (f32[6]{0}, u32[], token[]) send(%scatter.1, %token), is_host_transfer=true
  ROOT %ag.1 = f32[8192,128]{1,0:T(8,128)} all-gather(%rs.1), replica_groups={{0,1,2,3}}, \
dimensions={0}
}
"""
_GPU = """\
ENTRY %main (rows: f32[8192,128]) -> f32[8192,128] {
  %rows = f32[8192,128]{1,0} parameter(0)
  %rs = ((f32[8192,128]{1,0}, f32[64]{0}), (f32[2048,128]{1,0}, \
f32[16]{0})) reduce-scatter-start(%rows, %b), replica_groups={{0,1,2,3}}, dimensions={0}
  %rs-done = (f32[2048,128]{1,0}, f32[16]{0}) reduce-scatter-done(%rs)
  %gemm = (f32[6,6]{1,0}, s8[100]{0}) custom-call(%rows, %rows), \
custom_call_target="__cublas$gemm", \
backend_config={"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}}
  %print = () custom-call(%gemm), custom_call_target="xla_ffi_python_gpu_callback"
  %ar = f32[100]{0} all-reduce-start(%c), \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add
  %ar-done = f32[100]{0} all-reduce-done(%ar)
  %cp = (bf16[100]{0}, bf16[100]{0}) collective-permute-start(%d), \
source_target_pairs={{0,1},{1,2}}
  %while.1 = (s32[], f32[6]{0}) while(%tuple), condition=%cond, body=%body
  ROOT %ag = ((f32[2048,128]{1,0}), (f32[8192,128]{1,0})) all-gather-start(%e), \
replica_groups={{0,1,2,3}}, dimensions={0}
}
"""


def test_bytes_that_a_chip_sends_along_rings():
    rows = 4 * 8192 * 128
    assert compiled.traffic(compiled.instructions(_TPU)) == {
        "reduce-scatter": [0.75 * rows],
        "all-reduce": [2 * 0.75 * (4 * 36 + 4)],
        "all-gather": [0.75 * rows],
    }


def test_operations_that_are_started_and_done_count_once():
    sent = compiled.traffic(compiled.instructions(_GPU))
    expected = {
        "reduce-scatter": 3 / 4 * (4 * 8192 * 128 + 4 * 64),
        "all-reduce": 2 * 3 / 4 * 400,
        "collective-permute": 200,
        "all-gather": 3 / 4 * 4 * 8192 * 128,
    }
    assert {kind: sum(each) for kind, each in sent.items()} == pytest.approx(expected)
    assert {len(each) for each in sent.values()} == {1}


def test_precision_scatters_and_what_goes_to_the_host():
    on_tpu, on_gpu = compiled.facts(_TPU), compiled.facts(_GPU)
    assert on_tpu["products"] == {"bf16 default": 1, "f32 highest": 1}
    assert on_gpu["products"] == {"f32 highest": 1}
    counts = ("scatters", "loops", "callbacks")
    assert [on_tpu[name] for name in counts] == [1, 0, 1]
    assert [on_gpu[name] for name in counts] == [0, 1, 1]
    assert on_gpu["custom_calls"] == {"__cublas$gemm": 1, "xla_ffi_python_gpu_callback": 1}


def test_a_collective_among_unknown_devices_is_an_error():
    with pytest.raises(ValueError, match="no devices are named"):
        compiled.traffic(compiled.instructions("  %a = f32[2] all-reduce(%b), to_apply=%c"))
