"""Checkpoints that do not depend on how a run was laid out.

DeepSpeed writes its own flat buffers, which only the same ZeRO stage, device, precision, ``sub_group_size`` and number
of ranks can read back, and which lack much (`launch.zero.state`). Here every rank writes, under their names, the parts
of the parameters that it holds::

    checkpoints/
      latest, best                 the name of a folder below
      step_00000500/
        manifest.json              written last: what is in the files, where, and its fingerprints
        rank_00000.safetensors     fp32 weights and optimizer moments, as flat parts
        frozen_00000.safetensors   parameters that are not trained; a hard link where they were saved before

A rank of any later run reads the parts that it is to hold. ``.partial`` marks a folder that is being written,
``.damaged`` one that a resume found broken.
"""
