# SPDX-License-Identifier: Apache-2.0
"""Training a pruned network with plain numpy or cupy arrays, in small pieces that read like the formulas.

A model is a dict of arrays: ``{"layer1.weight": [out, in], "layer1.bias": [out], "layer2.weight": ...}``. The modules:

``sources``      read IDX files, npz archives, scikit-learn's digits
``data``         load, clean, normalise, augment and split
``model``        initialise, forward, backward, dense to sparse layers
``losses``       mean squared error, softmax cross-entropy: value and gradient
``optimizers``   gradient descent, SGD with momentum, Adam, AdamW, all masked
``steps``        training steps on the kept weights alone, for phases in which the masks stay
``loop``         epochs of minibatches with early stopping, one yielded result an epoch
``importance``   gradients and input norms over many batches, turned into scores
``gradual``      pruning by a schedule from within the loop
``updating``     prune, adjust, accept or reject, save
``evaluation``   loss, accuracy, FLOPs, bytes, latency
``recipe``       all of it in order: what ``gossamer train`` runs
"""
