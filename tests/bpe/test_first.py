import bpe

TEXT = ["Once upon a time, there was a little dog. The dog said: naïve café 🐶!"] * 3


def test_round_trip_and_save(tmp_path):
    tokenizer = bpe.train(TEXT, 300)
    ids = tokenizer.encode(TEXT[0])
    assert tokenizer.decode(ids) == TEXT[0]
    tokenizer.save(tmp_path / "t.json")
    assert bpe.load(tmp_path / "t.json") == tokenizer
