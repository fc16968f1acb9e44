"""Each promise of SECURITY.md has a test, and each test that is named here exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROMISES = {
    "Recipes": ["recipe/test_received.py::test_tags_that_build_objects_are_refused"],
    "Plug-ins are code.": ["cli/test_entry.py::test_components_are_listed_with_their_origin"],
    "Code of a model": [
        "recipe/test_received.py::test_code_of_a_received_recipe_needs_the_word_of_the_person",
        "training/test_many_runs.py::test_the_command_does_this_run_alone",
        "recipe/test_received.py::test_code_other_than_the_recorded_code_is_refused_even_then",
    ],
    "Local code": [
        "recipe/test_received.py::test_local_code_needs_the_word_of_the_person",
        "recipe/test_received.py::test_other_local_code_is_refused_also_with_consent",
        "recipe/test_received.py::test_a_bundle_runs_no_local_code",
        "training/test_run.py::test_a_run_with_local_code_keeps_a_copy_that_runs_only_with_consent",
    ],
    "Checkpoints": [
        "runs/test_folder.py::test_checkpoints_hold_tensors_and_plain_python_only",
        "runs/test_folder.py::test_a_bit_flipped_anywhere_in_a_checkpoint_never_gives_other_weights",
    ],
    "Bundles": [
        "inference/test_bundles.py::test_a_byte_flipped_anywhere_in_any_file_is_refused",
        "inference/test_bundles.py::test_a_bundle_with_hostile_files_is_one_message",
        "inference/test_mutants.py::test_mutated_bundles",
    ],
    "Files of a run folder": ["inference/test_mutants.py::test_mutated_runs"],
    "The cache": [
        "data/test_preparation.py::test_a_bit_flipped_in_the_store_is_noticed_and_the_case_prepared_again",
        "text/test_embeddings.py::test_a_damaged_entry_is_noticed_and_rebuilt",
    ],
    "Weights of the Hugging Face hub": ["textseg_atmnet/test_huggingface.py::test_a_pickle_runs_no_code"],
    "The internet": ["system/test_hub.py::test_fetch_brings_what_a_run_then_needs_without_a_network"],
    "Tables": ["system/test_user_files.py::test_a_written_table_has_no_formulas_and_reads_back_as_it_was"],
    "Commands": ["system/test_commands.py::test_a_name_is_one_word_of_the_shell"],
    "Names from data": ["system/test_files.py::test_links_at_predictable_names_are_removed_and_not_followed"],
    "Volumes": [
        "volumes/test_files.py::test_truncated_files_are_refused_without_chatter",
        "system/test_fetching.py::test_links_in_the_target_folder_are_not_followed",
    ],
}


def test_each_promise_has_tests() -> None:
    promised = re.findall(r"^- \*\*(.+?)\*\*", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(promised) == sorted(PROMISES)
    for promise, tests in PROMISES.items():
        assert tests, promise
        for test in tests:
            path, _, name = test.partition("::")
            tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test
