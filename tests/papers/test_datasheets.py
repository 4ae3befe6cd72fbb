import pytest

from retbench.cli.targets import datasheet_target
from retbench.errors import ConfigError, UnsupportedError
from retbench.papers.papers import find_datasheet, load_datasheets


@pytest.mark.parametrize("name", load_datasheets())
def test_a_datasheet_says_where_its_numbers_are_from(name: str) -> None:
    sheet = find_datasheet(name)
    assert "datasheet" in sheet.source
    assert f"{sheet.memory_bytes / 1e9:.0f} GB" in sheet.source
    found = sheet.ceilings("bfloat16")
    assert found.read_bandwidth_bytes_per_s == sheet.read_bandwidth_bytes_per_s
    assert found.matmul_flops_per_s > 10 * sheet.ceilings("float32").matmul_flops_per_s / 3


@pytest.mark.parametrize("name", load_datasheets())
def test_the_usable_memory_is_that_of_the_driver_and_near_the_makers(name: str) -> None:
    sheet = find_datasheet(name)
    assert 0.95 < sheet.usable_bytes / sheet.memory_bytes < 1.08
    assert sheet.usable_bytes != sheet.memory_bytes
    assert sheet.usable_source


@pytest.mark.parametrize("name", load_datasheets())
def test_the_cost_of_a_kernel_is_said_to_be_assumed(name: str) -> None:
    sheet = find_datasheet(name)
    assert 1e-6 < sheet.kernel_s < 5e-6
    assert sheet.kernel_source.startswith("assumption")


def test_a_prediction_fills_the_usable_memory() -> None:
    assert datasheet_target("h200", "bfloat16", {}).memory_bytes == find_datasheet("h200").usable_bytes


def test_the_papers_device_is_there() -> None:
    found = find_datasheet("a100-80gb").ceilings("bfloat16")
    assert (found.read_bandwidth_bytes_per_s, found.matmul_flops_per_s) == (2.039e12, 312e12)


def test_an_unknown_device_is_an_error_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'a100-80gb'"):
        find_datasheet("a100-80g")


def test_a_dtype_without_a_rate_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="no rate of products in float64"):
        find_datasheet("h200").ceilings("float64")
