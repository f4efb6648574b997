"""The tiny world: small videos of a coloured animal and a static object, rendered with exact boxes.

vocabulary.py          the words, their colours, and the combinations that pretraining never sees
sprites.py             shapes of animals and objects, as anti-aliased masks
renderer.py            renders a `Scene` (the words, placements and motion of a clip) into a video and exact boxes
clips.py               draws captioned training clips; their motion follows the caption only in some of them
color_segmentation.py  finds both sprites of a video by their colours: the tracker behind DSR-Score
fidelity.py            measures whether a generated video still looks like the tiny world
networks.py, vae_training.py, latent_subspace.py, training_loop.py
                       build and train the embedded models
rooms/                 textured 3-D rooms for the camera tasks
"""
