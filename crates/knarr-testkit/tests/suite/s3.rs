//! The local S3 servers, each driven by boto3.

use std::process::Command;

use knarr_testkit::s3::{Moto, RcloneServe, S3Server, S3sFs};
use knarr_testkit::tools;

const EXCHANGE: &str = r#"
import sys, boto3
from botocore.config import Config
url, bucket, key, secret, region = sys.argv[1:]
config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1})
s3 = boto3.client("s3", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret, region_name=region, config=config)
s3.put_object(Bucket=bucket, Key="hold/cargo", Body=b"cargo")
assert s3.get_object(Bucket=bucket, Key="hold/cargo")["Body"].read() == b"cargo"
upload = s3.create_multipart_upload(Bucket=bucket, Key="large")["UploadId"]
part = s3.upload_part(Bucket=bucket, Key="large", UploadId=upload, PartNumber=1, Body=b"x" * 6_000_000)
parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
s3.complete_multipart_upload(Bucket=bucket, Key="large", UploadId=upload, MultipartUpload=parts)
keys = sorted(item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"])
assert keys == ["hold/cargo", "large"], keys
"#;

fn exchange(server: &impl S3Server) {
    let python = tools::python_with("boto3").unwrap_or_else(|error| panic!("{error}"));
    let output = Command::new(python)
        .args(["-c", EXCHANGE, &server.endpoint_url(), server.bucket()])
        .args([server.access_key(), server.secret_key(), server.region()])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}\n{}", server.log());
}

#[test]
fn s3s_fs_stores_objects_and_survives_a_kill_on_the_same_port() {
    let mut server = S3sFs::start();
    exchange(&server);
    let url = server.endpoint_url();
    server.kill();
    server.restart();
    assert_eq!(server.endpoint_url(), url);
    assert!(
        server
            .root()
            .join(server.bucket())
            .join("hold/cargo")
            .exists()
    );
}

#[test]
fn moto_stores_objects() {
    exchange(&Moto::start());
}

#[test]
fn rclone_serves_objects() {
    exchange(&RcloneServe::start());
}
