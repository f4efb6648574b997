"""The tiny world: small videos of a coloured animal and a static object, rendered with exact boxes.

vocabulary.py   which words exist, their colours, and which combinations are held out
sprites.py      how animals and objects look (anti-aliased masks)
renderer.py     a `Scene` (who, where, which motion) -> video and exact boxes
clips.py        captioned training clips whose motion only partly obeys the caption
fidelity.py     does a generated video still look like the tiny world?
networks.py, vae_training.py, latent_subspace.py, training_loop.py     what the embedded models are made with
rooms/          textured 3-D rooms for the camera tasks
"""
