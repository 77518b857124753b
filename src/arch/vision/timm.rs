//! Keys of timm's configurations, and what its loader makes of them.

use serde_json::{Map, Value};

use crate::{arch::keys::Keys, family::Fault};

/// Keys of timm's `config.json`.
pub(super) const KEYS: Keys = Keys {
    honoured: &["architecture", "global_pool", "model_args", "pretrained_cfg"],
    only: &[],
    ignored: &[
        ("the head's matrix has them", &["num_classes", "num_features"]),
        ("the manifest names classes", &["label_descriptions", "label_names"]),
    ],
};

/// Keys of timm's `model_args`.
pub(super) const ARGUMENTS: Keys = Keys {
    honoured: &[
        "act_layer",
        "depth",
        "embed_dim",
        "global_pool",
        "img_size",
        "in_chans",
        "num_classes",
        "num_heads",
        "patch_size",
    ],
    only: &[
        ("class_token", &["true"]),
        ("dynamic_img_pad", &["false"]),
        ("final_norm", &["true"]),
        ("pool_include_prefix", &["false"]),
        ("pos_embed", &["\"learn\""]),
        ("pre_norm", &["false"]),
        ("proj_bias", &["true"]),
        ("qk_norm", &["false"]),
        ("reg_tokens", &["0"]),
        ("scale_attn_norm", &["false"]),
        ("scale_mlp_norm", &["false"]),
    ],
    ignored: &[
        (
            "the tensors say it",
            &["fc_norm", "init_values", "mlp_ratio", "no_embed_class", "qkv_bias"],
        ),
        ("images have one size", &["dynamic_img_size"]),
        (
            "they are about training",
            &[
                "attn_drop_rate",
                "drop_path_rate",
                "drop_rate",
                "fix_init",
                "patch_drop_rate",
                "pos_drop_rate",
                "proj_drop_rate",
                "weight_init",
            ],
        ),
    ],
};

/// Number of heads for the sizes in timm's architecture names.
pub(super) const HEADS: [(&str, usize); 5] =
    [("_tiny_", 3), ("_small_", 6), ("_base_", 12), ("_large_", 16), ("_huge_", 16)];

/// Returns the name of the pooling that timm's loader builds a network with.
///
/// `argument` is that of `model_args`, `top` that beside it, and `pretrained` is `pretrained_cfg`,
/// whose other keys say where weights come from and how images are prepared.
///
/// # Errors
///
/// Fails if `top` says another name. timm writes there what a network had and does not read it.
pub(super) fn pooling<'c>(
    argument: Option<&'c str>,
    top: Option<&'c str>,
    pretrained: Option<&'c Map<String, Value>>,
) -> Result<&'c str, Fault> {
    let Some(pretrained) = pretrained else {
        // Files of earlier versions have no other place.
        return Ok(argument.or(top).unwrap_or("token"));
    };
    let stated = argument.or_else(|| pretrained.get("global_pool").and_then(Value::as_str));
    match (stated, top) {
        (None, Some(top)) if top != "token" => {
            let expected = "`model_args.global_pool` is missing, and timm reads no other";
            Err(Fault::new("global_pool", top, expected))
        }
        (stated, _) => Ok(stated.unwrap_or("token")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pooling_is_what_the_loader_of_timm_builds() {
        let written = json!({"global_pool": "avg"});
        let written = written.as_object();
        let empty = Map::new();
        let empty = Some(&empty);
        for (argument, top, pretrained, expected) in [
            (None, None, None, Ok("token")),
            (None, Some("avg"), None, Ok("avg")),
            (Some("token"), Some("avg"), None, Ok("token")),
            (None, None, empty, Ok("token")),
            (None, None, written, Ok("avg")),
            (None, Some("token"), written, Ok("avg")),
            (Some("token"), Some("avg"), written, Ok("token")),
            (None, Some("token"), empty, Ok("token")),
            (None, Some("avg"), empty, Err("global_pool")),
        ] {
            let found = pooling(argument, top, pretrained);
            let found = found.as_ref().map_err(|fault| fault.key.as_str()).copied();
            assert_eq!(found, expected, "{argument:?} {top:?} {pretrained:?}");
        }
    }
}
