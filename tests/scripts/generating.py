"""What the tests of gen_samples.py and gen_videos.py share."""

IMAGE, RAW = 32, 8  # pixels per side of the tiny generator


def forbid(monkeypatch, module):
    def rendered(*_):
        raise AssertionError('this was to be found out before')

    monkeypatch.setattr(module, 'render_subjects', rendered)
