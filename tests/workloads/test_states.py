import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retbench.data import text
from retbench.errors import StorageError
from retbench.mixers.state import TOKEN_AXIS
from retbench.models.language_model import LanguageModel
from retbench.models.state import DecoderState
from retbench.planning.cells import Cell, Weights
from retbench.records.record import WeightsInfo
from retbench.workloads import states
from retbench.workloads.context import Context
from retbench.workloads.states import StateStore, cache_scales, fill_caches, is_streamed, stream_states

from .conftest import make_cell

Make = Callable[[Cell], Context]


def ignore(_done: int, _total: int) -> None:
    """Progress that nobody wants."""


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_streamed_state_is_what_a_prefill_leaves_in_every_sequence(
    context_of: Make, store: StateStore, batch_size: int
) -> None:
    cells = [make_cell("retnet", "decode", depth) for depth in (200, 65, 1)]
    model = context_of(cells[0]).model
    stream_states(model, cells, store, ignore)
    rows = text.read_rows(1, 199).expand(batch_size, -1)
    for cell in cells:
        position = cell.point.context_len - 1
        expected, found = model.init_state(batch_size, 0), model.init_state(batch_size, 0)
        if position:
            model.prefill(rows[:, :position], expected)
        store.load(cell, found, position)
        assert found.position == position
        for ours, theirs in zip(found.layers, expected.layers, strict=True):
            torch.testing.assert_close(ours["values"], theirs["values"], rtol=1e-4, atol=1e-6)


def test_streaming_reports_and_goes_on_from_what_is_stored(context_of: Make, store: StateStore) -> None:
    shallow, deep = make_cell("retnet", "decode", 65), make_cell("retnet", "decode", 200)
    model = context_of(deep).model
    stream_states(model, [shallow], store, ignore)
    seen: list[tuple[int, int]] = []
    stream_states(model, [deep, shallow], store, lambda done, total: seen.append((done, total)))
    assert seen == [(64, 199), (199, 199)]
    seen.clear()
    stream_states(model, [deep, shallow], store, lambda done, total: seen.append((done, total)))
    assert seen == []


def test_all_batch_sizes_share_a_state(context_of: Make, store: StateStore) -> None:
    cells = [make_cell("retnet", "decode", 65, batch_size) for batch_size in (4, 1)]
    seen: list[tuple[int, int]] = []
    stream_states(context_of(cells[0]).model, cells, store, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 64), (64, 64)]
    assert all(store.holds(cell, 64) for cell in cells)


def test_a_state_of_other_code_seed_or_depth_is_not_found(
    context_of: Make, store: StateStore, tmp_path: Path
) -> None:
    cell = make_cell("retnet", "decode", 65)
    stream_states(context_of(cell).model, [cell], store, ignore)
    assert store.holds(cell, 64)
    assert not store.holds(cell, 63)
    other_seed = cell.model_copy(update={"settings": cell.settings.model_copy(update={"seed": 4})})
    assert not store.holds(other_seed, 64)
    assert not StateStore(tmp_path / "states", "0.1.0+src.other").holds(cell, 64)


def trained(cell: Cell, fingerprint: str) -> Cell:
    """The same cell with weights that were read from a folder."""
    info = WeightsInfo(source="folder", fingerprint=fingerprint, format="retbench")
    weights = Weights(path=Path("folder"), info=info)
    return cell.model_copy(update={"under_test": cell.under_test.model_copy(update={"weights": weights})})


def test_models_of_one_configuration_with_other_weights_share_no_state(
    context_of: Make, store: StateStore
) -> None:
    cell = make_cell("retnet", "decode", 65)
    stream_states(context_of(cell).model, [trained(cell, "aaaa")], store, ignore)
    assert store.holds(trained(cell, "aaaa"), 64)
    assert not store.holds(trained(cell, "bbbb"), 64)
    assert not store.holds(cell, 64)


def test_a_state_that_cannot_be_stored_leaves_nothing_half_written(context_of: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    cell = make_cell("retnet", "decode", 65)
    store = StateStore(tmp_path / "file", "0.1.0+src.test")
    with pytest.raises(StorageError, match="cannot be written"):
        stream_states(context_of(cell).model, [cell], store, ignore)


def test_a_stored_state_that_has_gone_is_an_error_of_the_storage(context_of: Make, store: StateStore) -> None:
    cell = make_cell("retnet", "decode", 65)
    model = context_of(cell).model
    stream_states(model, [cell], store, ignore)
    (path,) = store._folder.iterdir()
    for spoil in (lambda: path.write_bytes(b"torn"), path.unlink):
        spoil()
        with pytest.raises(StorageError, match="run the same command again"):
            store.load(cell, model.init_state(1, 0), 64)


def test_only_models_without_a_cache_are_streamed(context_of: Make) -> None:
    assert is_streamed(context_of(make_cell("retnet", "decode", 8)).model)
    assert not is_streamed(context_of(make_cell("transformer", "decode", 8)).model)


def test_caches_are_filled_with_the_scale_of_a_real_prefill(context_of: Make) -> None:
    model = context_of(make_cell("transformer", "decode", 4096)).model
    scales = cache_scales(model)
    assert len(scales) == model.config.num_layers
    state = model.init_state(2, 4097)
    fill_caches(model, state, 4095, seed=0)
    assert state.position == 4095
    for layer, stds in zip(state.layers, scales, strict=True):
        assert stds.keys() == {"keys", "values"}
        for name, std in stds.items():
            written, rest = layer[name].tensor_split([4095], dim=TOKEN_AXIS)
            for piece in written.split(1024, dim=TOKEN_AXIS):
                assert float(piece.std()) == pytest.approx(std, rel=0.02)
            assert not rest.any()
    real = model.init_state(1, 512)
    model.prefill(text.read_rows(1, 512), real)
    assert scales[0]["keys"] == pytest.approx(float(real.layers[0]["keys"].std()), rel=1e-4)


def test_the_scales_of_a_model_with_few_positions_come_from_a_prefill_of_that_many_tokens(
    context_of: Make,
) -> None:
    model = context_of(make_cell("transformer", "decode", 64)).model
    model.max_positions = 256
    real = model.init_state(1, 256)
    model.prefill(text.read_rows(1, 256), real)
    assert cache_scales(model)[0]["keys"] == pytest.approx(float(real.layers[0]["keys"].std()), rel=1e-4)


def test_a_prefill_gives_the_scales_once_and_its_cache_takes_no_memory_from_cells(
    context_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = context_of(make_cell("transformer", "decode", 64)).model
    prefill, made = states.prefilled_state, []

    def watched(model: LanguageModel) -> DecoderState:
        state = prefill(model)
        made.extend(weakref.ref(tensor) for layer in state.layers for tensor in layer.tensors.values())
        return state

    monkeypatch.setattr(states, "prefilled_state", watched)
    scales = cache_scales(model)
    fill_caches(model, model.init_state(1, 64), 63, seed=0)
    assert cache_scales(model) == scales
    assert len(made) == 2 * model.config.num_layers
    assert all(tensor() is None for tensor in made)
