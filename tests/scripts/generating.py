"""What the tests of gen_samples.py and gen_videos.py share."""

from sampling import subjects

IMAGE, RAW = 32, 8  # pixels per side of the tiny generator


def forbid(monkeypatch):
    def rendered(*_):
        raise AssertionError('this was to be found out before')

    monkeypatch.setattr(subjects, 'render_subjects', rendered)
