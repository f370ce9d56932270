"Package metadata, read from settings.ini; every `NAME_requirements` entry there is the extra `[NAME]`."

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
cfg = ConfigParser()
cfg.read(ROOT / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
suffix = "_requirements"

# What the commands of an installed package read. In the repository it stands once, beside the package; in a wheel, inside.
SHIPPED = ["data_samples/*.jsonl", "data_samples/*.json", "data_samples/*.md", "recipes/*"]


class BuildWithSamples(build_py):
    "Build the modules, and put the sample data and the recipes beside them."

    def run(self):
        super().run()
        if self.editable_mode:  # a clone has them already
            return
        inside = Path(self.build_lib) / cfg["lib_path"] / "_shipped"
        shutil.rmtree(inside, ignore_errors=True)
        for file in (f for pattern in SHIPPED for f in sorted(ROOT.glob(pattern))):
            target = inside / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def addresses():  # {label: URL}; none before the repository has an address
    if cfg["user"] == "OWNER":
        return {}
    home = cfg["git_url"]
    return {
        "Homepage": home,
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Source": home,
        "Issues": home + "/issues",
        "Changelog": f"{home}/blob/{cfg['branch']}/CHANGELOG.md",
    }


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    # of the code, and of the texts in the samples
    license_files=["LICENSE", "data_samples/NOTICE.md"],
    keywords=cfg["keywords"].split(),
    project_urls=addresses(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Framework :: Jupyter",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Natural Language :: Chinese (Simplified)",
        "Natural Language :: English",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Education",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={cfg["lib_path"]: ["py.typed"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={k[: -len(suffix)]: v.split() for k, v in cfg.items() if k.endswith(suffix)},
    # nbdev's documentation finds the package's symbols through its own entry point
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": ["minimind=minimind._modidx:d"],
    },
    cmdclass={"build_py": BuildWithSamples},
    zip_safe=False,
)
