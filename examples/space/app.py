"""The page that `hymate push --space` puts on the Hub, on this machine.

pip install -e ".[train,space]"
python examples/space/app.py model_cards/hymate-physionet2012-mortality
"""

from hymate_training.publishing.space.app import main

if __name__ == "__main__":
    main()
