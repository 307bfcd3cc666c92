"""What a bundle takes to the device: these files, as they are, beside the model.

They and the modules that they import need numpy, Pillow and the engine, and nothing else: no
pydantic, no click, no mimiq-deploy. ``mimiq_deploy/bundle/device_files.py`` lists them.
"""
