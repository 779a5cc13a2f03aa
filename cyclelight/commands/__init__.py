"""The commands of the program: names -> (`module:function`, what it does)."""

COMMANDS = {
    "quickstart": (
        "cyclelight.commands.quickstart:quickstart",
        "train on two folders and translate between them",
    ),
    "fit": ("cyclelight.commands.fit:fit", "train the model of a domain, or an autoencoder"),
    "validate": ("cyclelight.commands.validate:validate", "compute the validation loss"),
    "test": ("cyclelight.commands.test:test", "sample a domain and score the samples"),
    "predict": ("cyclelight.commands.predict:predict", "translate images into another domain"),
    "guide": ("cyclelight.commands.guide:guide", "steer a generator by a judge of its images"),
    "edit": ("cyclelight.commands.edit:edit", "edit images by texts"),
    "evaluate": ("cyclelight.commands.evaluate:evaluate", "score translations of any program"),
    "compare": (
        "cyclelight.commands.compare:compare",
        "compare methods, settings and seeds in one table",
    ),
    "weights": ("cyclelight.commands.weights:weights", "show and fetch the weights of metrics"),
    "atlas": ("cyclelight.commands.atlas:atlas", "draw the codes between two images"),
    "analyze": (
        "cyclelight.commands.analyze:analyze",
        "show what a pair does to images, step by step",
    ),
    "benchmark": ("cyclelight.commands.benchmark:benchmark", "time the translation here"),
    "import": ("cyclelight.commands.import_:import_", "make a domain of a foreign checkpoint"),
    "export": (
        "cyclelight.commands.export:export",
        "write a domain for guided-diffusion, or a generator as ONNX",
    ),
    "inspect": ("cyclelight.commands.inspect:inspect", "show domains and which can be paired"),
    "completion": (
        "cyclelight.commands.completion:completion",
        "print a script for the Tab key of bash or zsh",
    ),
    "push": ("cyclelight.commands.push:push", "publish a domain on the Hugging Face Hub"),
}
