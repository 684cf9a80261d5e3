"""`python -m trainers.affect.label`, which `limbic label` runs."""

from trainers.affect.label.commands import label

if __name__ == "__main__":
    label(prog_name="limbic label")
