"Package metadata, read from settings.ini; every `NAME_requirements` entry there is the extra `[NAME]`."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser()
cfg.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
suffix = "_requirements"

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    if Path("README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Education",
        "Programming Language :: Python :: 3",
    ],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={k[: -len(suffix)]: v.split() for k, v in cfg.items() if k.endswith(suffix)},
    # nbdev's documentation finds the package's symbols through its own entry point
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": ["minimind=minimind._modidx:d"],
    },
    include_package_data=True,
    zip_safe=False,
)
