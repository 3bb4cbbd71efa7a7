"""The one-line faults of `mutants`, each with the invariant that it breaks and its guards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A line of the package, what it becomes, and who must notice.

    ``invariant`` is its number in the table of tests/README.md; ``file`` lies in mt_convert, guards
    in tests. Lines are compared without their indentation.
    """

    invariant: int
    file: str
    old: str
    new: str
    guards: tuple[str, ...]

    @property
    def name(self) -> str:
        """The place and the new line."""
        return f"{self.invariant:>2}  {self.file}: {self.new}"


MUTANTS = (
    Mutant(
        1,
        "neurons/totals.py",
        "distance = y.round().clamp_(low, high).sub_(total)",
        "distance = (y + 0.5).floor().clamp_(low, high).sub_(total)",
        ("spiking/test_convert.py::test_one_step_is_exact_a_few_ulp_around_every_threshold",),
    ),
    Mutant(
        1,
        "spiking/simulate.py",
        "return value / along_batch(step, value)",
        "return value * (1 / along_batch(step, value))",
        ("spiking/test_convert.py::test_one_step_is_exact_a_few_ulp_around_every_threshold",),
    ),
    Mutant(
        2,
        "neurons/dynamics.py",
        "above, below = h >= (count + 1 - shift) * step, h < (count - shift) * step",
        "above, below = (torch.zeros_like(h, dtype=torch.bool) for _ in range(2))",
        (
            "neurons/test_dynamics.py::test_closed_form_equals_the_literal_rule_at_every_float_next"
            "_to_a_threshold",
        ),
    ),
    Mutant(
        2,
        "neurons/totals.py",
        "return torch.where("
        "k.remainder(2) == 1, edge.nextafter(torch.full_like(k, math.inf)), edge)",
        "return edge",
        (
            "neurons/test_totals.py::test_closed_form_equals_the_literal_rule_on_ties_and_their"
            "_neighbours",
        ),
    ),
    Mutant(
        2,
        "integer_engine/arithmetic.py",
        "return Terms(tuple(parts), bias)",
        "return Terms(tuple(parts))",
        ("integer_engine/test_arithmetic.py::test_dyadic_weights_make_the_float_simulation_equal",),
    ),
    Mutant(
        2,
        "integer_engine/native/kernels/layers.h",
        "if (row != first + n) fire();",
        "",
        ("integer_engine/native/test_native.py::test_tiles_go_over_rows_and_borders",),
    ),
    Mutant(
        2,
        "integer_engine/native/kernels/layers.h",
        "const int from = v + p * tall, shift = from - std::min(from, last);",
        "const int from = v + p * tall, shift = 0;",
        ("integer_engine/native/test_native.py::test_tiles_go_over_rows_and_borders",),
    ),
    Mutant(
        2,
        "integer_engine/native/kernels/tiles.h",
        "~TileSetting() { set_tiles(before); }",
        "~TileSetting() {}",
        ("integer_engine/native/test_native.py::test_tiles_of_others_are_set_up_again",),
    ),
    Mutant(
        2,
        "integer_engine/native/kernels/kernels.cpp",
        "const int64_t worth = threads == 1 ? 1 : work_of(call, op) / call.least_work;",
        "const int64_t worth = threads == 1 ? 1 : Pool::most_parts;",
        (
            "integer_engine/native/test_native.py::test_threads_share_out_what_is_worth_it"
            "_and_change_no_bit",
        ),
    ),
    Mutant(
        2,
        "integer_engine/native/packing.py",
        "filled = F.pad(parts, (0, 0, 0, 0, 0, count * depth - length))",
        "filled = F.pad(parts, (0, 0, 0, 0, 0, count * depth - length), value=1)",
        ("integer_engine/native/test_native.py::test_tiles_go_over_rows_and_borders",),
    ),
    Mutant(
        1,
        "evaluation/counter.py",
        "if not bool(exact[t].any()):  # layers before have told all images apart",
        "if True:",
        ("evaluation/test_evaluate.py::test_exact_share_is_recounted_from_the_emissions",),
    ),
    Mutant(
        2,
        "neurons/dynamics.py",
        "torch.float32: (torch.int32, 0x7F80_0000),",
        "torch.float32: (torch.int32, 0x7FC0_0000),",
        ("neurons/test_totals.py::test_the_largest_power_is_read_off_the_exponent",),
    ),
    Mutant(
        2,
        "neurons/totals.py",
        "upper = (byte >> 2).bitwise_and_(0x33)",
        "upper = (byte >> 2).bitwise_and_(0x13)",
        ("neurons/test_totals.py::test_set_bits_are_those_that_python_counts",),
    ),
    Mutant(
        3,
        "spiking/simulate.py",
        "return torch.stack(amounts).repeat_interleave(batch)",
        "return torch.stack(amounts).repeat(batch)",
        ("spiking/test_simulate.py::test_layer_by_layer_equals_step_by_step",),
    ),
    Mutant(
        4,
        "spiking/simulate.py",
        "self.totals: dict[str, Tensor] = {}",
        'self.totals: dict[str, Tensor] = snn.__dict__.setdefault("left", {})',
        ("spiking/test_simulate.py::test_a_run_leaves_no_state",),
    ),
    Mutant(
        5,
        "neurons/dynamics.py",
        "v = h - (spikes.detach() if spec.detach_reset else spikes)",
        "v = (h - (spikes.detach() if spec.detach_reset else spikes)).clamp(min=0)",
        (
            "neurons/test_dynamics.py::test_emitted_plus_residual_is_all_current_plus_the_initial"
            "_potential",
        ),
    ),
    Mutant(
        6,
        "neurons/totals.py",
        "return distance.clamp_(-reach if spec.signed else 0, reach).add_(total)",
        "return distance.clamp_(0, reach).add_(total)",
        ("spiking/test_simulate.py::test_signed_totals_settle_on_the_quantized_levels_and_stay",),
    ),
    Mutant(
        7,
        "spiking/single_spikes/spike_by_spike.py",
        "self.before[node] = now",
        "self.before.setdefault(node, now)",
        (
            "spiking/single_spikes/test_spike_by_spike.py::"
            "test_a_temporal_difference_sums_to_the_maximum_of_the"
            "_summed_input",
        ),
    ),
    Mutant(
        7,
        "spiking/single_spikes/spike_by_spike.py",
        "return operate(now[0], second + now[1]) + operate(first, now[1])",
        "return operate(now[0], second + now[1])",
        (
            "spiking/test_operators.py::test_spikes_alone_give_the_same_totals_as_running_totals"
            "[attention_explicit]",
        ),
    ),
    Mutant(
        8,
        "evaluation/errors/sums.py",
        "errors = (a - c, c - q, q - m, a - m)",
        "errors = (a - c, c - q, m - q, a - m)",
        (
            "evaluation/errors/test_layer_errors.py::test_two_neurons_by_hand",
            "evaluation/errors/test_layer_errors.py::test_every_row_is_what_the_tensors_say_and_its"
            "_causes_add_up",
        ),
    ),
    Mutant(
        9,
        "spiking/conversion_report.py",
        "reason = _NOT_SPIKES[row.fed_by]",
        "pass",
        (
            "spiking/test_convert.py::test_every_weighted_layer_is_fed_by_spikes_or_listed_with_the"
            "_reason",
        ),
    ),
    Mutant(
        10,
        "evaluation/energy/synops.py",
        "self.synops[node][t] += float((places * additions).sum())",
        "self.synops[node][t] += float(places.sum() * additions.max())",
        (
            "evaluation/energy/test_measure.py::test_an_event_counts_the_outputs_it_reaches_at_each"
            "_place_of_the_image",
        ),
    ),
    Mutant(
        10,
        "evaluation/energy/synops.py",
        "events = count_events(emitted, ladder_at(self.ladders[number - 1], t))",
        "events = count_events(emitted.clamp(min=0), ladder_at(self.ladders[number - 1], t))",
        ("evaluation/energy/test_measure.py::test_a_spike_downwards_counts_like_one_upwards",),
    ),
    Mutant(
        11,
        "spiking/archive/layers.py",
        'signed=bool(stored["signed"]),',
        "signed=False,",
        ("spiking/archive/test_network.py::test_ladder_presentation_and_window_come_back",),
    ),
    Mutant(
        12,
        "training/session.py",
        "reader.load_state_dict(self.reading)",
        "pass",
        (
            "training/test_resume.py::test_a_run_stopped_at_any_place_of_a_save_ends_with_the_same"
            "_weights",
        ),
    ),
    Mutant(
        12,
        "training/session.py",
        'self.loss_sum = numbers["loss_sums"][self.share[0]]',
        "self.loss_sum = 0.0",
        (
            "training/test_resume.py::test_a_run_stopped_at_any_place_of_a_save_ends_with_the_same"
            "_weights",
        ),
    ),
    Mutant(
        13,
        "graph/float32.py",
        "stack.enter_context(torch.autocast(kind, enabled=False))",
        "pass",
        (
            "integer_engine/test_arithmetic.py::test_autocast_and_a_fast_matmul_setting_change_no"
            "_bit",
        ),
    ),
    Mutant(
        14,
        "neurons/ladder.py",
        "return Digit(self.n, self.base ** self._left(t), self.gaps, self.lifted)",
        "return Digit(self.n, self.base ** self._left(t + 1), self.gaps, self.lifted)",
        ("neurons/test_fixed_threshold.py::test_the_digits_are_those_of_the_level_in_every_step",),
    ),
    Mutant(
        14,
        "spiking/simulate.py",
        "series[node][-1], self._worth(layer, self.time_steps - 1), layer",
        "series[node][0], self._worth(layer, self.time_steps - 1), layer",
        (
            "spiking/single_spikes/test_window_spikes.py::"
            "test_digits_that_meet_are_the_quantized_network_ties_included",
        ),
    ),
    Mutant(
        14,
        "spiking/single_spikes/trains.py",
        "return self.steps[-1] if self.base is None else self.so_far()[-1]",
        "return self.steps[-1] if self.base is None else self.so_far()[len(self.steps) // 2]",
        (
            "spiking/single_spikes/test_window_spikes.py::"
            "test_digits_that_meet_are_the_quantized_network_ties_included",
        ),
    ),
    Mutant(
        14,
        "spiking/single_spikes/window_spikes.py",
        "return Train(steps, (one.base[0], one.base[1] + two.base[1]))",
        "return Train(steps, one.base)",
        (
            "spiking/single_spikes/test_window_spikes.py::"
            "test_digits_that_meet_are_the_quantized_network_ties_included",
        ),
    ),
    Mutant(
        14,
        "neurons/fixed_threshold.py",
        "level = y.double().clamp(lowest, high) - spec.start",
        "level = y.double().clamp(lowest) - spec.start",
        ("neurons/test_fixed_threshold.py::test_the_digits_are_those_of_the_level_in_every_step",),
    ),
    Mutant(
        14,
        "neurons/fixed_threshold.py",
        "return fired * state.sign, state._replace(z=(state.z - theta * fired) * ladder.base)",
        "return fired, state._replace(z=(state.z - theta * fired) * ladder.base)",
        ("neurons/test_fixed_threshold.py::test_the_digits_are_those_of_the_level_in_every_step",),
    ),
    Mutant(
        14,
        "neurons/fixed_threshold.py",
        "return Speaking(torch.where(odd, z - _BELOW, z), level.sign())",
        "return Speaking(z, level.sign())",
        ("neurons/test_fixed_threshold.py::test_the_digits_are_those_of_the_level_in_every_step",),
    ),
    Mutant(
        14,
        "neurons/totals.py",
        "return digit.clamp_(-n if spec.signed else 0, n).mul_(unit).add_(total)",
        "return digit.clamp_(0, n).mul_(unit).add_(total)",
        ("neurons/test_fixed_threshold.py::test_the_digits_are_those_of_the_level_in_every_step",),
    ),
    Mutant(
        14,
        "integer_engine/torch_backend.py",
        "before = None if item.window else before  # a window begins afresh",
        "pass",
        ("integer_engine/test_windows.py::test_windows_are_the_same_bits_behind_every_step",),
    ),
    Mutant(
        14,
        "neurons/fixed_threshold.py",
        "odd = (z + spec.start).remainder(2) == 1",
        "odd = z.remainder(2) == 1",
        ("neurons/test_fixed_threshold.py::test_ties_from_an_odd_lowest_level_go_to_even_levels",),
    ),
    Mutant(
        14,
        "spiking/single_spikes/window_spikes.py",
        "self.lifts[name] = neuron.spec.start * worth",
        "self.lifts[name] = 0 * worth",
        (
            "spiking/single_spikes/test_window_spikes.py::test_digits_from_the_lowest_level_have_no_spike_below"
            "_0[sums]",
        ),
    ),
    Mutant(
        15,
        "quantization/activations/formula.py",
        "shift = -norm.running_mean * scale",
        "shift = norm.running_mean * scale",
        (
            "quantization/activations/test_formula.py::test_a_batch_norm_is_defined_as_torch_computes_it",
        ),
    ),
    Mutant(
        15,
        "quantization/activations/formula.py",
        "super().train(mode and not self.fixed)",
        "super().train(mode)",
        (
            "spiking/test_functions.py::test_a_batch_norm_inside_a_function_is_trained_and_stands"
            "_still_in_its_neurons",
        ),
    ),
    Mutant(
        15,
        "neurons/bisection.py",
        "return (torch.floor(levels + 0.5) if half_up else levels.round()).clamp(*bounds)",
        "return levels.round().clamp(*bounds)",
        (
            "quantization/activations/test_rounding.py::test_networks_that_round_half_up_are_exact"
            "_in_every_engine",
        ),
    ),
    Mutant(
        16,
        "export/forms/unrolled.py",
        "before = torch.where(distance < 0, high, low).double()",
        "before = torch.where(distance < 0, low, low).double()",
        ("export/forms/test_unrolled.py::test_what_a_step_adds_is_what_the_thresholds_fire",),
    ),
    Mutant(
        16,
        "export/onnx_formats/qonnx_thresholds.py",
        "for name, level in zip(others, beside, strict=True):",
        "for name, level in zip(others[:0], beside[:0], strict=True):",
        (
            "export/onnx_formats/test_onnx_graph.py::test_qonnx_has_thresholds_for_each_level"
            "_where_no_sum_is_whole",
        ),
    ),
    Mutant(
        16,
        "export/forms/float32_sums.py",
        "if largest * gain < FLOAT32_WHOLE:",
        "if gain < FLOAT32_WHOLE:",
        ("export/onnx_formats/test_onnx_graph.py::test_sums_beyond_float32_leave_in_parts",),
    ),
    Mutant(
        16,
        "export/onnx_formats/onnx_integers.py",
        'zero = graph.constant(f"{made}_zero", up >> 8 * place & 255, np.uint8)',
        'zero = graph.constant(f"{made}_zero", up & 255, np.uint8)',
        ("export/onnx_formats/test_onnx_graph.py::test_bytes_of_levels_are_multiplied_one_by_one",),
    ),
    Mutant(
        16,
        "export/numpy_reader.py",
        "count = np.where(u >= rows[place, more - 1], more, count)",
        "count = np.where(u > rows[place, more - 1], more, count)",
        ("export/test_table_folder.py::test_every_small_network_leaves_exactly",),
    ),
    Mutant(
        15,
        "quantization/chain.py",
        "tensors |= layer.formula.tensors()",
        "pass",
        ("spiking/test_functions.py::test_a_chain_takes_what_a_function_learned",),
    ),
    Mutant(
        15,
        "integer_engine/native/step_tables.py",
        "thresholds = F.pad(table.thresholds, (0, width - count), value=beyond)",
        "thresholds = F.pad(table.thresholds, (0, width - count))",
        (
            "integer_engine/native/test_step_tables.py::test_levels_of_functions_are_those_of_torch"
            "_next_to_every_threshold",
        ),
    ),
    Mutant(
        15,
        "integer_engine/native/kernels/functions.h",
        "return _mm256_and_ps(weight, _mm256_cmp_ps(y, threshold, _CMP_GE_OQ));",
        "return _mm256_and_ps(weight, _mm256_cmp_ps(y, threshold, _CMP_GT_OQ));",
        (
            "integer_engine/native/test_step_tables.py::test_levels_of_functions_are_those_of_torch"
            "_next_to_every_threshold",
        ),
    ),
    Mutant(
        15,
        "neurons/bisection.py",
        "weights[own, index] = sign.to(torch.int8)",
        "weights[own, index] = sign.abs().to(torch.int8)",
        ("neurons/test_bisection.py::test_each_channel_has_thresholds_of_its_own",),
    ),
    Mutant(
        15,
        "neurons/step_table.py",
        "level = level + place(weight) * (x >= place(threshold)).to(x.dtype)",
        "level = level + place(weight).abs() * (x >= place(threshold)).to(x.dtype)",
        ("neurons/test_bisection.py::test_each_channel_has_thresholds_of_its_own",),
    ),
    Mutant(
        15,
        "neurons/bisection.py",
        "places, order = high.sort(stable=True, dim=0)",
        "places, order = (high + 1).sort(stable=True, dim=0)",
        ("neurons/test_bisection.py::test_each_channel_has_thresholds_of_its_own",),
    ),
    Mutant(
        15,
        "neurons/step_table.py",
        "return torch.bucketize(x.contiguous(), self.thresholds[0].to(x.dtype), right=True)",
        "return torch.bucketize(x.contiguous(), self.thresholds[0].to(x.dtype), right=False)",
        (
            "neurons/test_bisection.py::test_the_table_is_the_definition_next_to_every_threshold_"
            "and_everywhere[tanh]",
        ),
    ),
    Mutant(
        15,
        "neurons/step_table.py",
        "return torch.cat([start, start + self.weights.long().cumsum(1)], 1)",
        "return torch.cat([0 * start, self.weights.long().cumsum(1)], 1)",
        (
            "neurons/test_bisection.py::test_the_table_is_the_definition_next_to_every_threshold_"
            "and_everywhere[tanh]",
        ),
    ),
    Mutant(
        15,
        "integer_engine/shift_add.py",
        "there = torch.where(down, free <= threshold, free >= threshold)",
        "there = free >= threshold",
        (
            "integer_engine/test_functions.py::test_networks_of_functions_are_whole_numbers_in_"
            "every_backend[prelu]",
        ),
    ),
    Mutant(
        15,
        "quantization/activations/quant_act.py",
        "if not self._made or self._made[1] != made_for:",
        "if not self._made:",
        (
            "quantization/activations/test_formula.py::test_the_table_is_made_again_after_"
            "training_moved_the_step_and_only_then",
        ),
    ),
    Mutant(
        15,
        "spiking/simulate.py",
        "events = events + pairs",
        "events = events + 0 * pairs",
        (
            "spiking/test_functions.py::test_events_are_thresholds_crossed_and_packets_what_is_"
            "emitted",
        ),
    ),
    Mutant(
        17,
        "graph/tracing/trace.py",
        "_keep_dropouts_(exported.graph)",
        "pass",
        ("graph/tracing/test_trace.py::test_dropout_is_active_in_training_alone",),
    ),
    Mutant(
        17,
        "graph/tracing/lift.py",
        'use = f"{self._key(weight, matrix)} {node.target} {self._by_key(settings)}"',
        'use = f"{self._key(weight, matrix)}"',
        ("graph/tracing/test_trace.py::test_one_weight_with_two_strides_becomes_two_layers",),
    ),
    Mutant(
        18,
        "graph/image_batches.py",
        "return second.ndim < min(first.ndim, 3) and len(second) == len(first)",
        "return len(second) == len(first)",
        ("graph/test_image_batches.py::test_every_form_of_images_gives_the_tensor_that_was_meant",),
    ),
    Mutant(
        18,
        "graph/image_batches.py",
        "return images if whole else images[:MOST]",
        "return images",
        ("graph/test_image_batches.py::test_what_may_have_no_end_is_read_up_to_1024_images",),
    ),
    Mutant(
        18,
        "graph/given_network.py",
        "elif not outer and leaf in _TAKEN:",
        "elif not outer and leaf in ():",
        ("graph/test_given_network.py::test_a_layer_is_traced_under_its_name_or_the_name_is_told",),
    ),
    Mutant(
        17,
        "graph/given_network.py",
        'lost.append(f"{name} ({type(module).__name__} {rate:g})")',
        "pass",
        ("graph/test_given_network.py::test_stochastic_depth_and_whole_channels_are_warned_of",),
    ),
    Mutant(
        18,
        "graph/leftovers.py",
        "held.clear()",
        "pass",
        ("spiking/test_model.py::test_nothing_of_a_conversion_stays_behind",),
    ),
    Mutant(
        18,
        "spiking/simulate.py",
        'snn = spiking_network(snn, "simulate")',
        "pass",
        ("test_first_day.py::test_what_cannot_be_meant_is_one_error_with_what_to_pass",),
    ),
    Mutant(
        18,
        "spiking/simulate.py",
        "if snn.report.calibrated_T not in (None, time_steps):",
        "if snn.report.calibrated_T == -1:",
        (
            "calibration/test_calibrate.py::test_a_run_for_other_steps_than_those_of_the_calibration_is_warned_of",
        ),
    ),
    Mutant(
        18,
        "spiking/convert.py",
        "setattr(layer, leaf, own)",
        "pass",
        (
            "quantization/test_parameters.py::test_a_tied_weight_is_one_parameter_in_fine_tuning_too",
        ),
    ),
    Mutant(
        18,
        "quantization/quantize.py",
        "if torch.compiler.is_compiling() or torch.jit.is_tracing():",
        "if torch.compiler.is_compiling():",
        ("quantization/test_export.py::test_tracing_looks_at_no_values_and_keeps_the_numbers",),
    ),
    Mutant(
        18,
        "data/own_sets.py",
        'with borrow_random(derive(*(key or (0, 0)), index, "sample")):',
        'with borrow_random(derive(*(key or (0, 0)), "sample")):',
        ("data/test_own_sets.py::test_augmentation_depends_on_seed_epoch_and_sample_alone",),
    ),
    Mutant(
        18,
        "data/own_sets.py",
        "return list(sampler.indices)",
        "return None",
        ("data/test_own_sets.py::test_every_form_gives_the_same_split",),
    ),
    Mutant(
        18,
        "evaluation/stored.py",
        "levels[name] = torch.round(value / layer.delta)",
        "levels[name] = torch.round(value / layer.delta) + 1",
        ("experiments/test_subjects.py::test_a_stored_spiking_network_is_evaluated_as_it_is",),
    ),
    Mutant(
        18,
        "experiments/models/code.py",
        "elif not (_ledger() / digest).is_file():",
        "elif not digest:",
        (
            "experiments/models/test_code.py::test_a_run_keeps_its_code_and_every_command_uses_it[architecture]",
        ),
    ),
    Mutant(
        18,
        "experiments/stages.py",
        "inputs += [_content(path) for path in self.settings.model.code_files.values()]",
        "inputs += [path for path in self.settings.model.code_files.values()]",
        ("experiments/models/test_code.py::test_changed_code_makes_the_network_again",),
    ),
    Mutant(
        18,
        "experiments/stages.py",
        'kept = (self.out / "ann").is_dir()',
        "kept = True",
        ("experiments/test_same_faults.py::test_check_and_run_say_the_same",),
    ),
    Mutant(
        19,
        "integer_engine/native/library_cache.py",
        "return plain and found.st_uid == os.geteuid()",
        "return plain",
        (
            "integer_engine/native/test_library_cache.py::test_files_and_folders_of_others_are_not"
            "_loaded",
        ),
    ),
    Mutant(
        19,
        "integer_engine/native/library_cache.py",
        'if _is_ours(path) and path.stem.rpartition("-")[2] == _content(path):',
        "if _is_ours(path):",
        (
            "integer_engine/native/test_library_cache.py::test_what_is_damaged_or_not_ours_alone_is"
            "_removed",
        ),
    ),
    Mutant(
        19,
        "experiments/recipes/bounds.py",
        "if name not in allowed:",
        'if name == "device":',
        (
            "experiments/recipes/test_bounds.py::test_what_is_no_known_argument_of_a_network_is"
            "_refused",
        ),
    ),
    Mutant(
        20,
        "experiments/publication.py",
        "exchange(out.resolve(), beside)",
        "raise OSError",
        (
            "experiments/test_publication.py::test_at_every_call_of_the_system_one_of_both_runs_is"
            "_there_whole",
        ),
    ),
    Mutant(
        20,
        "system/folder_lock.py",
        "raise OutputError(_refusal(path, _holder(path)))",
        "pass",
        (
            "system/test_folder_lock.py::test_the_second_is_told_who_is_there_and_a_killed_one_is"
            "_not",
        ),
    ),
    Mutant(
        20,
        "system/stopping.py",
        "raise KeyboardInterrupt",
        "return",
        ("experiments/test_stopping.py::test_every_signal_that_ends_a_command_says_how_to_go_on",),
    ),
    Mutant(
        20,
        "system/storage.py",
        "os.chmod(temporary, 0o666 & ~_umask())  # writers may have made the file anew",
        "pass",
        ("experiments/test_stopping.py::test_files_have_the_modes_that_the_user_wants",),
    ),
    Mutant(
        21,
        "system/storage.py",
        "if depth > DEEPEST_JSON:",
        "if depth > 10**9:",
        ("system/test_storage.py::test_json_that_is_not_ours_is_one_error_that_names_the_file",),
    ),
    Mutant(
        21,
        "spiking/archive/content.py",
        'raise CheckpointError(f"{name}: holds NaN or infinity")',
        "pass",
        ("spiking/archive/test_content.py::test_a_forged_folder_fails_when_it_is_read",),
    ),
    Mutant(
        21,
        "data/image_listing.py",
        "_check_size(item, path.stat().st_size)",
        "pass",
        (
            "data/test_image_listing.py::test_a_member_that_claims_a_terabyte_is_refused_and_takes"
            "_no_memory",
        ),
    ),
    Mutant(
        21,
        "experiments/recipes/bounds.py",
        "if value < low or value > high  # what is no number is told elsewhere",
        "if value < low",
        ("experiments/recipes/test_bounds.py::test_a_number_beyond_a_bound_is_told_with_both",),
    ),
)
