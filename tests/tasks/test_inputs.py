"""Inputs as a person names them, and the volumes that they mean."""

import pytest

from configs.errors import InputError
from tasks.files.selection import expand_inputs


@pytest.fixture
def folder(tmp_path):
    for name in ("b.nii.gz", "a.nii", "c.mgz", "notes.md", ".hidden.nii", "pair.hdr", "pair.img", "deep/d.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(folder, *given):
    return [path.relative_to(folder).as_posix() for path in expand_inputs(given)]


def test_a_folder_means_its_volumes_and_a_pair_is_one(folder):
    assert names(folder, folder) == ["a.nii", "b.nii.gz", "c.mgz", "pair.hdr"]


def test_a_glob_reaches_down_if_it_is_asked_to(folder):
    assert names(folder, folder / "*.nii*") == ["a.nii", "b.nii.gz"]
    assert names(folder, f"{folder}/**/*.nii") == ["a.nii", "deep/d.nii"]


def test_files_are_taken_in_order_and_once(folder):
    given = [folder / name for name in ("c.mgz", "a.nii", "deep/../a.nii", "pair.img", "pair.hdr")]
    assert names(folder, *given) == ["c.mgz", "a.nii", "pair.img"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "# two of them\nb.nii.gz\n\n  a.nii  \n"),
        ("list.csv", "subject,path,age\n1,b.nii.gz,30\n2,a.nii,40\n"),
        ("list.csv", "b.nii.gz\na.nii\n"),
        ("list.csv", "\ufeffvolume\nb.nii.gz\na.nii\n"),
        ("list.csv", 'id,Image\n1,"b.nii.gz"\n2,a.nii\n'),
        ("list.tsv", "filename\tage\nb.nii.gz\t1\na.nii\t2\n"),
    ],
)
def test_paths_in_a_list_are_relative_to_it_and_in_its_order(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    assert names(folder, folder / name) == ["b.nii.gz", "a.nii"]


def test_a_list_may_name_absolute_paths(folder):
    (folder / "deep" / "list.txt").write_text(f"{folder}/a.nii\n")
    assert names(folder, folder / "deep" / "list.txt") == ["a.nii"]


def test_nothing_given_is_an_error():
    with pytest.raises(InputError, match="none were given"):
        expand_inputs([])


def test_a_time_point_is_named_by_its_number(folder):
    given = [f"{folder}/b.nii.gz[0]", f"{folder}/b.nii.gz[12]", f"{folder}/b.nii.gz"]
    assert names(folder, *given) == ["b.nii.gz[0]", "b.nii.gz[12]", "b.nii.gz"]
    with pytest.raises(InputError, match="no volume matches it"):
        expand_inputs([f"{folder}/gone.nii.gz[0]"])
    (folder / "b.nii.gz[0]").touch()  # a file of that very name
    assert names(folder, given[0]) == ["b.nii.gz[0]"]


def test_links_to_one_file_are_called_as_the_links_are(folder):
    for name in ("sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz"):
        (folder / "deep" / name).symlink_to(folder / "b.nii.gz")
    assert names(folder, folder / "deep") == ["deep/d.nii", "deep/sub-1_T1w.nii.gz", "deep/sub-2_T1w.nii.gz"]
