//! Images over HTTP: files and tensors, classes by name, and what is no image.

use base64::{Engine, prelude::BASE64_STANDARD};
use image::{GrayImage, ImageFormat};
use serde_json::{Value, json};
use tessera::{
    family::PlanId,
    fit::export_plan,
    input::{ModelInput, Pixels},
    onnx::read_model,
    runtime::{Executor, SideInputs, WholeModel},
    tensor::{Tensor, TensorData},
};

use crate::support::{
    Reference, assert_close, fashion_family,
    http::{app, get, send},
    runtime,
};

const INFER: &str = "/v2/models/fashion/infer";

/// The first reference image as bytes, and as the network reads it.
fn picture() -> (Vec<u8>, Vec<f32>) {
    let reference = Reference::read("fashion");
    let (_, pixels) = reference.tensor("pixel_values");
    let values: Vec<f32> = pixels[..784].iter().map(|value| *value as f32).collect();
    let byte = |value: &f32| ((value * 0.3530 + 0.2860) * 255.0).round() as i32;
    let byte = |value| u8::try_from(byte(value)).expect("a byte");
    (values.iter().map(byte).collect(), values)
}

fn file(bytes: &[u8], format: ImageFormat) -> Vec<u8> {
    let picture = GrayImage::from_raw(28, 28, bytes.to_vec()).expect("28 by 28");
    let mut file = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut file, format).expect("written");
    file.into_inner()
}

fn image(file: &[u8]) -> Value {
    let data = [BASE64_STANDARD.encode(file)];
    json!({"name": "image", "shape": [1], "datatype": "BYTES", "data": data})
}

fn logits(answer: &Value) -> Vec<f64> {
    let data = answer["outputs"][0]["data"].as_array().expect("an output");
    data.iter().map(|value| value.as_f64().expect("a number")).collect()
}

#[tokio::test]
async fn an_image_file_gives_what_its_pixels_give() {
    let app = app();
    let (bytes, values) = picture();
    let parameters = json!({"plan": "l[0..6]"});
    let shape = [1, 1, 28, 28];
    let pixels = json!({
        "name": "pixel_values", "shape": shape, "datatype": "FP32", "data": values
    });
    let request = json!({"parameters": parameters, "inputs": [pixels]});
    let of_pixels = send(&app, "POST", INFER, request.to_string()).await.expect(200);
    let png = image(&file(&bytes, ImageFormat::Png));
    let request = json!({"parameters": parameters, "inputs": [png]});
    let of_file = send(&app, "POST", INFER, request.to_string()).await.expect(200);
    assert_eq!(of_file["outputs"][0]["name"], "logits");
    assert_eq!(of_file["outputs"][0]["shape"], json!([1, 10]));
    for (one, other) in logits(&of_pixels).iter().zip(logits(&of_file)) {
        assert!((one - other).abs() < 1e-3, "{one} and {other}");
    }
}

#[tokio::test]
async fn the_best_classes_are_named_where_asked() {
    let app = app();
    let (bytes, _) = picture();
    let jpeg = image(&file(&bytes, ImageFormat::Jpeg));
    let outputs = json!([{"name": "logits", "parameters": {"classification": 2}}]);
    let request = json!({"inputs": [jpeg], "outputs": outputs});
    let answer = send(&app, "POST", INFER, request.to_string()).await.expect(200);
    assert_eq!(answer["outputs"][0]["datatype"], "BYTES");
    assert_eq!(answer["outputs"][0]["shape"], json!([1, 2]));
    let best = answer["outputs"][0]["data"][0].as_str().expect("a text");
    let [score, index, label] = best.split(':').collect::<Vec<_>>()[..] else {
        panic!("{best} is not score:index:label");
    };
    assert!(score.parse::<f32>().is_ok(), "{best}");
    let index: usize = index.parse().expect("a class");
    assert_eq!(label, fashion_family().manifest.output.labels[index]);
    let model = get(&app, "/v2/models/fashion").await.expect(200);
    assert_eq!(model["parameters"]["labels"][9], "Ankle boot");
    assert_eq!(model["parameters"]["metric"], "accuracy");
    assert_eq!(model["inputs"][1]["shape"], json!([-1, 1, 28, 28]));
}

/// The head of a PNG file of this size, and nothing behind it.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 0, 0, 0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&chunk);
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    file.extend(chunk);
    file.extend(crc.sum().to_be_bytes());
    file.extend(b"\0\0\0\x01IDAT");
    file
}

#[tokio::test]
async fn what_is_no_image_is_refused_and_the_server_goes_on() {
    let app = app();
    let (bytes, _) = picture();
    let png = file(&bytes, ImageFormat::Png);
    let jpeg = file(&bytes, ImageFormat::Jpeg);
    let pixels = |shape: Value, count: usize| {
        let data = vec![0.0; count];
        json!({"name": "pixel_values", "shape": shape, "datatype": "FP32", "data": data})
    };
    for (inputs, reason) in [
        (json!([image(&png[..png.len() / 2])]), "image 0: it cannot be decoded"),
        (json!([image(&jpeg[..20])]), "image 0: it cannot be decoded"),
        (json!([image(&png_header(10_000, 10_000))]), "10000 × 10000 pixels, over the limit"),
        (json!([image(&png_header(0, 5))]), "image 0: it"),
        (json!([image(b"GIF89a\x01\0\x01\0\0\0\0;")]), "neither PNG nor JPEG"),
        (json!([image(b"")]), "neither PNG nor JPEG"),
        (json!([]), "it is missing; give image, or pixel_values"),
        (json!([image(&png), pixels(json!([1, 1, 28, 28]), 784)]), "excludes"),
        (json!([pixels(json!([1, 3, 28, 28]), 2_352)]), "[batch, 1, 28, 28]"),
        (
            json!([{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["no_image!"]}]),
            "neither an image nor base64",
        ),
    ] {
        let request = json!({"inputs": inputs}).to_string();
        let error = send(&app, "POST", INFER, request).await.expect(400);
        let message = error["error"].as_str().expect("a message");
        assert!(message.contains(reason), "no `{reason}` in: {message}");
    }
    let request = json!({"inputs": [image(&png)]}).to_string();
    send(&app, "POST", INFER, request).await.expect(200);
}

#[test]
fn an_exported_plan_is_one_model_with_the_same_answers() {
    let family = fashion_family();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let reference = Reference::read("fashion");
    let (shape, pixels) = reference.tensor("pixel_values");
    let values = pixels.iter().map(|value| *value as f32).collect();
    let images = Tensor::new(shape.to_vec(), TensorData::F32(values)).expect("images");
    for plan in ["s[0..2]>m[1..6]", "l[0..4]{w33:0..3,exit:head}", "m[0..3]"] {
        let path = PlanId::parse(&family.graph, plan).expect("a plan");
        let model = export_plan(&family, &path).expect("exported");
        std::fs::write(folder.path().join("net.onnx"), &model).expect("written");
        let read = read_model(folder.path(), "net.onnx".as_ref()).expect("ordered");
        let graph = read.graph.as_ref().expect("a graph");
        assert_eq!((graph.input.len(), graph.input[0].name.as_str()), (1, "pixel_values"));
        let wanted = ["logits".to_owned()];
        let mut whole =
            WholeModel::load(&runtime(), folder.path(), "whole", &read, &wanted).expect("loads");
        let found = whole.run(&[("pixel_values", &images)], &wanted).expect("runs").remove(0);
        let values = images.as_f32().expect("f32").to_vec();
        let input = ModelInput::Pixels(Pixels { shape: [1, 28, 28], values });
        let sides = SideInputs::of_input(input).expect("images");
        let expected = Executor::new(runtime(), family.clone()).run(&path, &sides, &mut ());
        let expected = expected.expect("the plan runs");
        let expected: Vec<f64> =
            expected[0].as_f32().expect("f32").iter().map(|value| f64::from(*value)).collect();
        assert_close(found.as_f32().expect("f32"), &expected, 1e-5, plan);
    }
}
