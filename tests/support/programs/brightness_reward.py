"""A reward that gives no two videos the same score."""


def brightness(completions, log_extra, **columns):
    log_extra("brightness_red", [float(video[..., 0].mean()) for video in completions])
    return [float(video.mean() + video.std() * 1e-3) for video in completions]
