//! Tests of the checks of inputs: each refusal by the input's name and the reason.

use super::*;

/// Tensors of a request, by name.
type Given = Vec<(&'static str, Tensor)>;

/// Returns a family of texts, of tokens without a tokenizer, or of images of 2 × 3 pixels.
fn family(kind: &str) -> Manifest {
    let tokenizer = if kind == "texts" { "tokenizer = \"tokenizer.json\"" } else { "" };
    let image = match kind {
        "images" => "image = { channels = 1, height = 2, width = 3, mean = [0.0], std = [1.0] }",
        _ => "",
    };
    let text = format!(
        "name = \"tiny\"\ntask = \"test\"\ndescription = \"\"\nlicense = \"\"\nreference = \"a\"\n\
         limits = {{ max_tokens = 4, max_batch = 3, max_text_bytes = 8, max_image_bytes = 9 }}\n\
         output = {{ name = \"scores\", width = 2 }}\n\
         quality = {{ metric = \"accuracy\", file = \"quality.json\" }}\n{image}\n\
         [anchors.a]\nfolder = \"a\"\n{tokenizer}\nsha256 = {{}}\n"
    );
    toml::from_str(&text).expect("a manifest")
}

fn parse(kind: &str, given: &[(&'static str, Tensor)]) -> Result<Inputs, ServeError> {
    let given = given.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone()));
    Inputs::parse(given.collect(), &family(kind))
}

fn integers(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::new(shape.to_vec(), TensorData::I64(values.to_vec())).expect("integers")
}

fn numbers(shape: &[usize], value: f32) -> Tensor {
    let values = vec![value; shape.iter().product()];
    Tensor::new(shape.to_vec(), TensorData::F32(values)).expect("numbers")
}

fn bytes(shape: &[usize], elements: &[&[u8]]) -> Tensor {
    let elements = elements.iter().map(|element| element.to_vec()).collect();
    Tensor::new(shape.to_vec(), TensorData::Bytes(elements)).expect("bytes")
}

/// Checks that a family of `kind` refuses each of `cases` as an input of this name, for a reason
/// with these words.
fn assert_refused(kind: &str, cases: Vec<(Given, &str, &str)>) {
    for (given, name, words) in cases {
        let error = parse(kind, &given).expect_err(words);
        let ServeError::Input { name: found, reason } = &error else {
            panic!("{words}: {error}");
        };
        assert_eq!(found, name, "{words}");
        assert!(reason.contains(words), "{words}: {reason}");
    }
}

#[test]
fn a_family_names_the_inputs_that_it_takes() {
    for (kind, expected) in [
        ("texts", &["text", "input_ids", "attention_mask"][..]),
        ("tokens", &["input_ids", "attention_mask"]),
        ("images", &["image", "pixel_values"]),
    ] {
        let specs = specs(&family(kind));
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, expected);
    }
    let pixels = &specs(&family("images"))[1];
    assert_eq!(pixels.shape, [None, Some(1), Some(2), Some(3)]);
}

#[test]
fn a_family_of_texts_refuses_what_is_neither_texts_nor_tokens() {
    let text = || ("text", bytes(&[1], &[b"a"]));
    let ids = || ("input_ids", integers(&[1, 2], &[5, 6]));
    let mask = |shape: &[usize], values: &[i64]| ("attention_mask", integers(shape, values));
    let ids_of = |tensor: Tensor| vec![("input_ids", tensor)];
    assert_refused(
        "texts",
        vec![
            (vec![], "text", "missing"),
            (vec![text(), ids()], "text", "excludes input_ids"),
            (vec![text(), mask(&[1, 2], &[1, 1])], "text", "excludes"),
            (vec![mask(&[1, 2], &[1, 1])], "input_ids", "missing beside attention_mask"),
            (vec![text(), text()], "text", "given twice"),
            (vec![("words", numbers(&[1], 0.0))], "words", "text, input_ids, attention_mask"),
            (vec![("text", numbers(&[1], 0.0))], "text", "FP32, but BYTES"),
            (vec![("text", bytes(&[1, 2], &[b"a", b"b"]))], "text", "[1, 2], but [batch]"),
            (vec![("text", bytes(&[1], &[&[0xff]]))], "text", "UTF-8"),
            (vec![("text", bytes(&[0], &[]))], "batch", "nothing in it"),
            (ids_of(numbers(&[1, 2], 0.0)), "input_ids", "FP32, but INT64"),
            (ids_of(integers(&[2], &[5, 6])), "input_ids", "[2], but [batch, tokens]"),
            (ids_of(integers(&[0, 2], &[])), "batch", "nothing in it"),
            (ids_of(integers(&[2, 0], &[])), "input_ids", "no token"),
            (vec![ids(), mask(&[2, 1], &[1, 1])], "attention_mask", "[2, 1], but input_ids"),
            (vec![ids(), mask(&[1, 2], &[1, 2])], "attention_mask", "1 for a token"),
            (vec![ids(), mask(&[1, 2], &[0, 0])], "attention_mask", "at least one 1"),
            (vec![ids(), mask(&[1, 2], &[0, 1])], "attention_mask", "ones and then zeros"),
            (vec![ids(), ("attention_mask", numbers(&[1, 2], 1.0))], "attention_mask", "FP32"),
        ],
    );
}

#[test]
fn a_family_without_a_tokenizer_takes_no_text() {
    let mask = ("attention_mask", integers(&[1, 1], &[1]));
    assert_refused(
        "tokens",
        vec![
            (vec![("text", bytes(&[1], &[b"a"]))], "text", "there are input_ids, attention_mask"),
            (vec![mask], "input_ids", "missing"),
            (vec![], "input_ids", "missing"),
        ],
    );
}

#[test]
fn a_family_of_images_refuses_what_is_not_an_image_of_its_extents() {
    let image = || ("image", bytes(&[1], &[b"a"]));
    let pixels = |shape: &[usize], value| ("pixel_values", numbers(shape, value));
    assert_refused(
        "images",
        vec![
            (vec![], "image", "missing"),
            (vec![image(), pixels(&[1, 1, 2, 3], 0.0)], "image", "excludes pixel_values"),
            (vec![("image", numbers(&[1], 0.0))], "image", "FP32, but BYTES"),
            (vec![("image", bytes(&[0], &[]))], "batch", "nothing in it"),
            (vec![("pixel_values", integers(&[1], &[0]))], "pixel_values", "INT64, but FP32"),
            (vec![pixels(&[1, 1, 3, 2], 0.0)], "pixel_values", "[batch, 1, 2, 3] is needed"),
            (vec![pixels(&[1, 2, 3], 0.0)], "pixel_values", "[1, 2, 3], but"),
            (vec![pixels(&[0, 1, 2, 3], 0.0)], "batch", "nothing in it"),
            (vec![pixels(&[1, 1, 2, 3], f32::NAN)], "pixel_values", "not a number"),
            (vec![pixels(&[3, 1, 2, 3], f32::INFINITY)], "pixel_values", "infinite"),
        ],
    );
}

#[test]
fn what_is_over_a_limit_is_refused_with_its_size() {
    let (text, five) = (bytes(&[2], &[b"12345678", b"123456789"]), integers(&[1, 5], &[0; 5]));
    let of = |name: &'static str, tensor| vec![(name, tensor)];
    let four = [&b"a"[..]; 4];
    for (kind, given, expected) in [
        ("texts", of("text", bytes(&[4], &four)), ("the batch", 4, 3)),
        ("texts", of("text", text), ("a text's number of bytes", 9, 8)),
        ("texts", of("input_ids", integers(&[4, 1], &[0; 4])), ("the batch", 4, 3)),
        ("texts", of("input_ids", five), ("the number of tokens", 5, 4)),
        ("images", of("image", bytes(&[4, 1], &four)), ("the batch", 4, 3)),
        ("images", of("pixel_values", numbers(&[4, 1, 2, 3], 0.0)), ("the batch", 4, 3)),
    ] {
        let error = parse(kind, &given).expect_err(expected.0);
        let ServeError::TooLarge { what, found, limit } = &error else { panic!("{error}") };
        assert_eq!((what.as_str(), *found, *limit), expected);
    }
}

#[test]
fn texts_are_taken_with_or_without_a_second_axis() {
    for shape in [&[2][..], &[2, 1]] {
        let inputs = parse("texts", &[("text", bytes(shape, &[b"", "öl".as_bytes()]))]);
        let inputs = inputs.expect("two texts");
        let Inputs::Texts(texts) = inputs else { panic!("{inputs:?}") };
        assert_eq!(*texts.strings, ["".to_owned(), "öl".to_owned()]);
    }
}

#[test]
fn every_id_is_a_token_where_no_mask_is_given() {
    let ids = integers(&[2, 3], &[7, 8, 0, 9, 0, 0]);
    let encoding = |given: &[(&'static str, Tensor)]| match parse("tokens", given) {
        Ok(Inputs::Ready(ModelInput::Tokens(encoding))) => encoding,
        other => panic!("{other:?}"),
    };
    let found = encoding(&[("input_ids", ids.clone())]);
    assert_eq!((found.batch, found.tokens), (2, 3));
    assert_eq!(found.input_ids, [7, 8, 0, 9, 0, 0]);
    assert_eq!(found.attention_mask, [1; 6]);
    let mask = integers(&[2, 3], &[1, 1, 0, 1, 0, 0]);
    let found = encoding(&[("attention_mask", mask), ("input_ids", ids)]);
    assert_eq!(found.attention_mask, [1, 1, 0, 1, 0, 0]);
}

#[test]
fn pixels_are_taken_as_they_are_and_files_are_kept_for_decoding() {
    let inputs = parse("images", &[("pixel_values", numbers(&[2, 1, 2, 3], 0.5))]);
    let Ok(Inputs::Ready(ModelInput::Pixels(pixels))) = inputs else { panic!("{inputs:?}") };
    assert_eq!(pixels, Pixels { shape: [1, 2, 3], values: vec![0.5; 12] });
    let inputs = parse("images", &[("image", bytes(&[2], &[b"one", b"three"]))]);
    let inputs = inputs.expect("two files");
    assert!(matches!(inputs, Inputs::Pictures(files) if files == [&b"one"[..], b"three"]));
}

#[test]
fn an_image_file_is_read_raw_or_from_base64() {
    let limits = family("images").limits;
    let raw = [0x89, b'P', b'N', b'G', 13, 10, 26, 10, 0];
    assert_eq!(image_file(&raw, &limits).expect("binary"), raw);
    assert_eq!(image_file(b"iVBORw0KGgoA", &limits).expect("base64"), raw);
    assert_eq!(image_file(b"", &limits).expect("for the decoder to refuse"), b"");
    let neither = image_file(b"a picture", &limits).expect("a space is not a graphic character");
    assert_eq!(neither, b"a picture", "for the decoder to refuse");
    let error = image_file(b"**picture**", &limits).expect_err("neither").to_string();
    assert!(error.contains("neither an image nor base64"), "{error}");
}

#[test]
fn the_size_of_an_image_file_is_checked_before_base64_is_decoded() {
    let limits = family("images").limits;
    let size = |bytes: &[u8]| match image_file(bytes, &limits) {
        Err(ServeError::TooLarge { found, limit: 9, .. }) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(size(&[0; 10]), 10, "raw");
    // Sixteen characters hold 10 to 12 bytes, so they are over the limit of 9, valid or not.
    assert_eq!(size(b"****************"), 10);
    // Twelve characters hold 7 to 9 bytes, so they are decoded.
    let error = image_file(b"************", &limits).expect_err("not base64");
    assert!(matches!(error, ServeError::Input { .. }), "{error}");
    let limits = Limits { max_image_bytes: 8, ..limits };
    let error = image_file(b"iVBORw0KGgoA", &limits).expect_err("nine bytes");
    assert!(matches!(error, ServeError::TooLarge { found: 9, limit: 8, .. }), "{error}");
}

#[test]
fn an_id_outside_of_the_vocabulary_is_named_by_its_place() {
    let encoding = |ids: &[i64]| Encoding {
        batch: 1,
        tokens: ids.len(),
        input_ids: ids.to_vec(),
        attention_mask: vec![1; ids.len()],
    };
    assert!(check_vocabulary(&encoding(&[0, 9]), 10).is_ok());
    for id in [-1, 10, i64::MIN, i64::MAX] {
        let error = check_vocabulary(&encoding(&[0, id]), 10).expect_err("outside").to_string();
        assert!(error.contains("element 1 is not a token id"), "{error}");
        assert!(error.ends_with("0 to 9"), "{error}");
    }
}

#[test]
fn one_value_among_many_that_is_not_finite_is_found() {
    let mut values = vec![f32::MAX; 3_000];
    assert!(are_finite(&values) && are_finite(&[]));
    for place in [0, 1_023, 1_024, 2_999] {
        values[place] = f32::NEG_INFINITY;
        assert!(!are_finite(&values), "{place}");
        values[place] = 0.0;
    }
}
