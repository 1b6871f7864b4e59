"""Images as they are stored: what is read is what the file holds, and what is written reads the same."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medadv.adapters.scans import read_scan

AFFINE = np.array([[0, -1.2, 0, 3], [1.5, 0, 0, -4], [0, 0, 2.5, 5], [0, 0, 0, 1]], dtype=np.float64)
RNG = np.random.default_rng(0)


def load(paths):
    return LoadImage(image_only=True, ensure_channel_first=True)(paths)


def volume(path, values, dtype, slope=1.0, inter=0.0):
    """A NIfTI file whose raw values are ``values``."""
    image = nibabel.Nifti1Image(values.astype(dtype), AFFINE, dtype=dtype)
    image.set_qform(AFFINE, 1)
    image.header.set_slope_inter(slope, inter)
    image.header["descrip"] = b"of a phantom"
    nibabel.save(image, path)
    return path


# dtype, slope, intercept
STORED = {
    "int16": ("int16", 1.0, 0.0), "unsigned with intercept": ("uint16", 1.0, -1024.0), "byte": ("uint8", 1.0, 0.0),
    "slope": ("int16", 0.25, 3.5), "awkward slope": ("int16", 0.1, -1024.0), "float": ("float32", 1.0, 0.0),
    "double": ("float64", 1.0, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("case", STORED)
def test_a_volume_is_written_as_it_was_stored(tmp_path, case, ending):
    dtype, slope, inter = STORED[case]
    raw = RNG.integers(0, 200, (5, 6, 4))
    path = volume(tmp_path / f"scan{ending}", raw, dtype, slope, inter)
    scan = read_scan([path], load)
    expected = raw * np.float64(np.float32(slope)) + np.float64(np.float32(inter))
    assert np.allclose(scan.values[0, 0].numpy(), expected, rtol=1e-6)
    changed = scan.values.clone()
    changed[0, 0, 2, 3] += 3 * (scan.grid or (1.0, 0.0))[0]
    (written,) = scan.write(changed, tmp_path / "out", "_changed")
    assert written.name == f"scan_changed{ending}"
    before, after = nibabel.load(path), nibabel.load(written)
    assert after.get_data_dtype() == before.get_data_dtype() and after.header["descrip"] == before.header["descrip"]
    assert np.array_equal(after.affine, before.affine)
    assert after.header.get_zooms() == before.header.get_zooms()
    assert int(after.header["qform_code"]) == 1
    difference = after.dataobj.get_unscaled().astype(float) - before.dataobj.get_unscaled()
    moved = np.zeros_like(difference)
    moved[2, 3] = 3
    assert np.array_equal(difference, moved)
    # and it reads as what was written
    assert np.allclose(load(str(written)).numpy(), changed[0].numpy(), rtol=1e-5, atol=1e-4)
    assert torch.equal(read_scan([written], load).values, changed)


def test_the_voxel_size_is_that_of_the_header(tmp_path):
    scan = read_scan([volume(tmp_path / "a.nii", np.zeros((3, 4, 5)), "int16")], load)
    assert scan.spacing == pytest.approx((1.5, 1.2, 2.5))


def test_channels_in_one_file_and_in_several(tmp_path):
    raw = RNG.integers(0, 99, (4, 5, 3, 2))
    one = read_scan([volume(tmp_path / "a.nii.gz", raw, "int16")], load)
    files = [volume(tmp_path / f"m{c}.nii.gz", raw[..., c], "int16") for c in range(2)]
    several = read_scan(files, load)
    assert torch.equal(one.values, several.values)
    for scan, names in ((one, ["a_x.nii.gz"]), (several, ["m0_x.nii.gz", "m1_x.nii.gz"])):
        written = scan.write(scan.values + 1, tmp_path / "out", "_x")
        assert [path.name for path in written] == names
        assert torch.equal(read_scan(list(written), load).values, scan.values + 1)


@pytest.mark.parametrize("kind", ["grey", "colour", "16 bit"])
def test_a_plane_is_written_without_loss(tmp_path, kind):
    shape, dtype = ((6, 5, 3), np.uint8) if kind == "colour" else ((6, 5), np.uint16 if kind == "16 bit" else np.uint8)
    raw = RNG.integers(0, 250, shape).astype(dtype)
    Image.fromarray(raw).save(tmp_path / "a.png")
    scan = read_scan([tmp_path / "a.png"], load)
    assert scan.grid == (1.0, 0.0) and scan.values.shape == (1, 3 if kind == "colour" else 1, 5, 6)
    (written,) = scan.write(scan.values + 2, tmp_path / "out", "_x")
    assert np.array_equal(np.asarray(Image.open(written)), raw + 2)
    mask = torch.zeros(5, 6)
    mask[4, 1] = 1
    where = scan.write_mask(mask, tmp_path / "mask")
    assert np.argwhere(np.asarray(Image.open(where))).tolist() == [[1, 4]]


def test_a_jpeg_becomes_a_png(tmp_path):
    Image.fromarray(RNG.integers(0, 250, (8, 8)).astype(np.uint8)).save(tmp_path / "a.jpg")
    scan = read_scan([tmp_path / "a.jpg"], load)
    (written,) = scan.write(scan.values, tmp_path / "out", "")
    assert written.name == "a.png" and torch.equal(read_scan([written], load).values, scan.values)


def series(folder, planes):
    """A DICOM series of CT slices, stored as unsigned numbers with an intercept."""
    folder.mkdir()
    uid = generate_uid()
    for place, plane in enumerate(planes):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.Modality, data.InstanceNumber = uid, "CT", place + 1
        data.Rows, data.Columns = plane.shape
        data.PixelSpacing, data.SliceThickness = [1.5, 1.2], 2.5
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.5 * place], [1, 0, 0, 0, 1, 0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = plane.astype(np.uint16).tobytes()
        data.save_as(folder / f"{place}.dcm", enforce_file_format=True)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_dicom_series_is_written_as_a_volume(tmp_path):
    raw = RNG.integers(0, 3000, (3, 6, 5))
    folder = series(tmp_path / "study", raw)
    scan = read_scan([folder], load)
    assert scan.storage == np.int16 and scan.spacing == pytest.approx((1.2, 1.5, 2.5))
    assert sorted(scan.values.flatten().tolist()) == sorted((raw - 1024).flatten().tolist())
    (written,) = scan.write(scan.values + 1, tmp_path / "out", "_x")
    again = read_scan([written], load)
    assert written.name == "study_x.nii.gz" and torch.equal(again.values, scan.values + 1)
    assert torch.allclose(again.image.affine, scan.image.affine)


def test_storage_of_another_kind(tmp_path):
    path = volume(tmp_path / "a.nii.gz", RNG.integers(-50, 50, (3, 4, 5)), "float32")
    assert read_scan([path], load).grid is None
    scan = read_scan([path], load, storage="int16")
    assert scan.grid == (1.0, 0.0)
    (written,) = scan.write(scan.values + 1, tmp_path / "out", "")
    assert nibabel.load(written).get_data_dtype() == np.int16
    with pytest.raises(ValueError, match="storage='uint8' does not"):
        read_scan([path], load, storage="uint8")
    with pytest.raises(ValueError, match="storage 'half' is unknown"):
        read_scan([path], load, storage="half")
    fractions = volume(tmp_path / "b.nii.gz", RNG.random((3, 4, 5)), "float32")
    with pytest.raises(ValueError, match="round the file first"):
        read_scan([fractions], load, storage="int16")


def test_what_the_storage_can_not_hold_is_not_written(tmp_path):
    scan = read_scan([volume(tmp_path / "a.nii.gz", np.full((3, 4, 5), 250), "uint8")], load)
    for changed in (scan.values + 0.5, scan.values + 10):
        with pytest.raises(ValueError, match="on the grid"):
            scan.write(changed, tmp_path / "out", "")
    assert not list((tmp_path / "out").glob("*"))
    with pytest.raises(ValueError, match="give that of the scan"):
        scan.write(scan.values[..., 1:], tmp_path / "out", "")


def test_what_can_not_be_written_back_is_refused(tmp_path):
    path = volume(tmp_path / "a.nii.gz", RNG.integers(0, 9, (4, 4, 4)), "int16")
    with pytest.raises(ValueError, match="changes the values of a.nii.gz"):
        read_scan([path], lambda p: load(p) * 2)
    with pytest.raises(ValueError, match="makes .* of a.nii.gz"):
        read_scan([path], lambda p: load(p)[:, 1:])
    with pytest.raises(ValueError, match="of no kind that can be written back"):
        np.save(tmp_path / "a.npy", np.zeros((3, 3)))
        read_scan([tmp_path / "a.npy"], load)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_scan([tmp_path / "none.nii"], load)
    broken = volume(tmp_path / "b.nii", np.full((3, 3, 3), np.nan), "float32")
    with pytest.raises(ValueError, match="NaN"):
        read_scan([broken], lambda p: MetaTensor(torch.full((1, 3, 3, 3), torch.nan), affine=torch.from_numpy(AFFINE)))


def test_channels_stored_differently_are_refused(tmp_path):
    files = [volume(tmp_path / f"{t}.nii", np.ones((3, 3, 3)), t) for t in ("int16", "uint8")]
    with pytest.raises(ValueError, match="stored differently"):
        read_scan(files, load)
